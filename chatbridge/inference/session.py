"""Chat sessions: turns of text, pictures, videos and sounds with one model."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

from chatbridge.inference import transcript
from chatbridge.inference.attachments import MediaSource, Medium
from chatbridge.inference.decoding import DecodingTask, beam_search, decode_tokens
from chatbridge.inference.engine import Engine
from chatbridge.inference.prompt import Exchange, Prompt
from chatbridge.inference.settings import GenerationSettings
from chatbridge.inference.text_stream import StreamedText

BUSY = "an answer is being given in this conversation; cancel it or wait for it"


@dataclass
class Reply:
    """A complete answer, and how it was generated.

    Attributes:
        text: of the answer.
        token_ids: the tokens as the model wrote them, a stop text included, the end token not.
        finish: "stop" when the model ended it, "length" at the most tokens allowed, "cancelled".
        dropped_turns: how many of the oldest turns the model did not see, because they no longer fit.
        remarks: on the media of the question, such as a video whose sound cannot be decoded.
        prompt_positions: what the model read; reused_positions: how many of them it had read before.
        seed: of the sampling; None for greedy decoding.
        first_seconds: until the first token (with beams: the whole answer), media included; seconds: in all.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish: str = ""
    dropped_turns: int = 0
    remarks: list[str] = field(default_factory=list)
    prompt_positions: int = 0
    reused_positions: int = 0
    seed: int | None = None
    first_seconds: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.text


class ReplyStream:
    """Iterates over the pieces of an answer while it is generated; together they are ``reply.text``.

    Nothing is computed between two pieces. Closing or dropping it cancels the answer, which stays in the conversation
    as far as it went.
    """

    def __init__(self, pieces: Iterator[str], reply: Reply):
        self._pieces, self._reply = pieces, reply

    def __iter__(self) -> ReplyStream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Cancel the answer. (While another thread waits for a piece: `ChatSession.cancel`.)"""
        self._pieces.close()

    @property
    def reply(self) -> Reply:
        """The whole answer; generates what is missing of it."""
        for _ in self._pieces:
            pass
        return self._reply


class MediaArguments(TypedDict, total=False):
    """Media of a question: `images`, `videos` and `audios`, then `media`, whose kinds are detected from their content.

    `sound`: whether the sound of videos is heard, too; None: where there is one and the model can hear; True insists.
    """

    images: Iterable[MediaSource | Medium]
    videos: Iterable[MediaSource | Medium]
    audios: Iterable[MediaSource | Medium]
    media: Iterable[MediaSource | Medium]
    sound: bool | None


class ChatSession:
    """One conversation. Answers are given one at a time; other sessions may share the engine.

    Args:
        engine: the model.
        settings: of generation, where a call gives no others.
        reuse: keep keys and values for the next turn (False: read everything again, to compare).

    Attributes:
        turns: the exchanges so far.
    """

    def __init__(self, engine: Engine, settings: GenerationSettings | None = None, reuse: bool = True):
        self.engine, self.reuse = engine, reuse
        self.settings = settings or GenerationSettings()
        self.turns: list[Exchange] = []
        self._cache = engine.new_cache()
        self._cancelled = threading.Event()
        self._lock = threading.Lock()

    @property
    def media(self) -> list[Medium]:
        """Everything shown so far, in order."""
        return [medium for turn in self.turns for medium in turn.media]

    def say(
        self, text: str = "", *, settings: GenerationSettings | None = None, **shown: Unpack[MediaArguments]
    ) -> Reply:
        """Ask, and wait for the answer.

        Args:
            text: the question. shown: media before it, see `MediaArguments`.

        Raises:
            MediaError: a medium that cannot be used; the conversation is then as before.
            ValueError: neither text nor media, or a question that does not fit into the context.
        """
        return self.stream(text, settings=settings, **shown).reply

    def stream(
        self, text: str = "", *, settings: GenerationSettings | None = None, **shown: Unpack[MediaArguments]
    ) -> ReplyStream:
        """As `say`, piece by piece; nothing is computed before the first piece is requested."""
        return self._ask([*self.turns, _exchange(text, self.attach(**shown))], settings)

    def attach(self, **shown: Unpack[MediaArguments]) -> list[Medium]:
        """Media to hand to `say`, a video's sound behind it. Arguments and errors are those of `say`."""
        if unknown := shown.keys() - MediaArguments.__annotations__.keys():
            known = ", ".join(MediaArguments.__annotations__)
            raise TypeError(f"unknown arguments: {', '.join(sorted(unknown))}; media are given as {known}")
        engine, sound = self.engine, shown.get("sound")
        attached = [engine.medium(source, "image") for source in shown.get("images", ())]
        for source in shown.get("videos", ()):
            attached += engine.video(source, sound)
        attached += [engine.medium(source, "audio") for source in shown.get("audios", ())]
        for source in shown.get("media", ()):
            medium = engine.medium(source)
            with_sound = medium.modality == "video" and not isinstance(source, Medium)
            attached += engine.video(medium, sound) if with_sound else [medium]
        return attached

    def regenerate(self, settings: GenerationSettings | None = None) -> Reply:
        """Answer the last question once more, instead of the answer it has.

        Raises:
            ValueError: when nothing was asked yet.
        """
        return self.stream_regenerate(settings).reply

    def stream_regenerate(self, settings: GenerationSettings | None = None) -> ReplyStream:
        """As `regenerate`, piece by piece."""
        last = self._turn(-1)
        return self._ask([*self.turns[:-1], Exchange(last.text, last.media)], settings)

    def edit(
        self,
        turn: int,
        text: str | None = None,
        media: Sequence[MediaSource | Medium] | None = None,
        settings: GenerationSettings | None = None,
    ) -> Reply:
        """Ask an earlier question differently; what came after it is forgotten.

        Args:
            turn: its place in `turns`. text, media: what to replace; None leaves it as it was.
        """
        return self.stream_edit(turn, text, media, settings).reply

    def stream_edit(
        self,
        turn: int,
        text: str | None = None,
        media: Sequence[MediaSource | Medium] | None = None,
        settings: GenerationSettings | None = None,
    ) -> ReplyStream:
        """As `edit`, piece by piece."""
        old = self._turn(turn)
        place = turn % len(self.turns)
        shown = list(old.media) if media is None else self.attach(media=media)
        return self._ask([*self.turns[:place], _exchange(old.text if text is None else text, shown)], settings)

    def mute(self, which: int | str, muted: bool = True) -> list[Medium]:
        """Show an empty medium in further answers in place of one (its number in `media`) or of all of a modality.

        Raises:
            ValueError: when there is no such medium.
        """
        self._check_idle()
        everything = self.media
        if isinstance(which, str):
            chosen = [medium for medium in everything if medium.modality == which]
        else:
            chosen = everything[which : which + 1] if which >= 0 else []
        if not chosen:
            raise ValueError(f"nothing is shown as '{which}'; shown so far: {len(everything)} media")
        for medium in chosen:
            medium.muted = muted
        return chosen

    def cancel(self) -> None:
        """End the answer that is being given after its next token, from any thread; without one, do nothing."""
        self._cancelled.set()

    def clear(self) -> None:
        """Forget the conversation."""
        self._check_idle()
        self.turns = []
        self._cache.reset()

    def release_cache(self) -> None:
        """Free the memory of keys and values; the next turn reads the conversation again.

        Raises:
            ValueError: while an answer is being given.
        """
        self._check_idle()
        self._cache.reset()

    def export(self, embed: bool = False) -> dict[str, Any]:
        """The conversation as plain values for JSON (`chatbridge.inference.transcript.export`)."""
        return transcript.export(self.turns, embed)

    def save(self, file: str | Path, embed: bool = False) -> Path:
        """Write the conversation to a JSON file, media by path or (`embed`) with their bytes."""
        return transcript.save(self.turns, file, embed)

    def load(self, source: str | Path | Mapping[str, Any], files: bool = True) -> None:
        """Go on with a conversation that `save` or `export` gave, instead of this one.

        Args:
            source: the JSON file, or its content.
            files: whether files of this machine may be read, `source` itself included.

        Raises:
            ValueError: when it is no such conversation, or media are missing or have changed; nothing is replaced then.
        """
        self._check_idle()
        if isinstance(source, str | Path) and files:
            self.turns = transcript.load(self.engine, source)
        else:  # what clients send is content, never the name of a file of this machine
            self.turns = transcript.restore(self.engine, source, files=files)

    def _turn(self, index: int) -> Exchange:
        if not -len(self.turns) <= index < len(self.turns):
            raise ValueError(f"there is no turn {index}; the conversation has {len(self.turns)}")
        return self.turns[index]

    def _check_idle(self) -> None:
        if self._lock.locked():
            raise ValueError(BUSY)

    def _ask(self, turns: list[Exchange], settings: GenerationSettings | None) -> ReplyStream:
        self._check_idle()
        self._cancelled.clear()
        reply = Reply(finish="cancelled")  # until generation ends otherwise
        return ReplyStream(self._answer(self.turns, turns, settings or self.settings, reply), reply)

    def _answer(
        self, before: list[Exchange], turns: list[Exchange], settings: GenerationSettings, reply: Reply
    ) -> Iterator[str]:
        """Pieces of the answer to the last of `turns`, which replace `before` as the conversation."""
        if not self._lock.acquire(blocking=False):
            raise ValueError(BUSY)
        try:
            if self.turns is not before:
                raise ValueError("the conversation went on since this was asked; ask it again")
            yield from self._generate(turns, settings, reply)
        finally:
            self._lock.release()

    def _generate(self, turns: list[Exchange], settings: GenerationSettings, reply: Reply) -> Iterator[str]:
        before, started = self.turns, time.perf_counter()
        text = StreamedText(self.engine.tokenizer, self.engine.prompt_format, self.engine.stop)
        try:
            prompt = self.engine.prompt(turns, settings)
            reply.remarks = [medium.remark for medium in turns[-1].media if medium.remark]
            self.turns = turns
            for piece in self._pieces(prompt, settings, text, reply):
                reply.first_seconds = reply.first_seconds or time.perf_counter() - started
                if piece:
                    yield piece
        except Exception:
            self.turns = before
            raise
        finally:
            reply.text, reply.token_ids, reply.seconds = text.text, text.ids, time.perf_counter() - started
            turns[-1].finish = reply.finish
            if text.ids or reply.finish != "cancelled":
                turns[-1].answer = reply.text
            elif len(turns) <= len(before):  # a regeneration without a token: keep the old answer
                self.turns = before

    def _pieces(self, prompt: Prompt, settings: GenerationSettings, text: StreamedText, reply: Reply) -> Iterator[str]:
        """The text that each token (with beams: the whole answer) completes; fills in the reply."""
        if settings.samples:
            reply.seed = settings.seed if settings.seed is not None else random.SystemRandom().randrange(2**63)
        cache = self._cache if self.reuse else self.engine.new_cache()
        reply.dropped_turns, reply.prompt_positions = prompt.dropped, len(prompt.positions)
        reply.reused_positions = cache.keep(prompt.positions)
        task = DecodingTask(
            cache=cache,
            positions=prompt.positions,
            embed=lambda start: self.engine.embed(prompt, start),
            settings=settings,
            max_tokens=self.engine.answer_length(settings),
            seed=reply.seed or 0,
        )
        if settings.num_beams > 1:
            ids = beam_search(task, lambda row: self._cancelled.is_set() or text.rule(row))
            yield "".join(map(text.add, ids))
        else:
            stream = decode_tokens(task)
            while not (text.stopped or self._cancelled.is_set()):
                token = next(stream, None)
                if token is None:
                    break
                yield text.add(token)
        if text.stopped or not self._cancelled.is_set():
            reply.finish = "length" if len(text.ids) == task.max_tokens and not text.stopped else "stop"
        yield text.end()


def _exchange(text: str, media: list[Medium]) -> Exchange:
    if not text and not media:
        raise ValueError("nothing is asked and nothing shown; give a text, or something to look at or listen to")
    return Exchange(text, media)
