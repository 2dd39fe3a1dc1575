"""What happens when somebody asks, stops, mutes, edits: from gradio's events to a conversation, and back to the page.

Whatever goes wrong is told in the page's status line, and what was typed is put back into the text box.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from chatbridge.common.documents import DocumentError, parse_json, read_bytes
from chatbridge.demo import markup, view
from chatbridge.demo.controls import Control, read
from chatbridge.demo.conversation import Conversation
from chatbridge.demo.examples import Example
from chatbridge.demo.guard import ARRIVED
from chatbridge.demo.room import OWNER
from chatbridge.demo.visitors import Visitors
from chatbridge.inference import GenerationSettings, Medium

logger = logging.getLogger("chatbridge")

Update = tuple[Any, ...]
"""New values for the chats, the text box, the switches and the status line, in this order."""

Event = Callable[..., Iterator[Update]]

FORGOTTEN = "This conversation was left alone for too long and has been forgotten. Ask again to begin a new one."
CLOSING = "The server is being shut down; this conversation ends here."
MEMORY = "The memory of the GPU does not suffice for this; show less, ask for a shorter answer, or try again later."
FAULT = "Something went wrong on the server; its log says what."

NAME = "chatbridge-conversation.json"


def _told(event: Event) -> Event:
    """Errors of an event become a line on the page."""

    @functools.wraps(event)
    def run(self: Handlers, *arguments: Any) -> Iterator[Update]:
        request = next(one for one in arguments if isinstance(one, gr.Request))
        try:
            yield from event(self, *arguments)
        except ValueError as error:
            yield self.told(request, self.words(error))
        except torch.OutOfMemoryError:
            logger.exception("out of memory")
            yield self.told(request, MEMORY)
        except Exception:
            logger.exception("an error in the page")
            yield self.told(request, FAULT)

    return run


class Handlers:
    """The events of a page.

    Args:
        visitors: whose conversations they are. sliders: what the page's settings mean, in their order.
        examples: what an empty chat offers.
    """

    def __init__(self, visitors: Visitors, sliders: list[Control], examples: Sequence[Example]):
        self.visitors, self.sliders, self.examples = visitors, sliders, examples

    @_told
    def ask(
        self,
        said: dict[str, Any] | None,
        max_new_tokens: float,
        temperature: float,
        top_p: float,
        top_k: float,
        repetition_penalty: float,
        num_beams: float,
        seed: float,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Ask about files that were uploaded: {"text": ..., "files": [{"path": ...}, ...]}."""
        chosen = (max_new_tokens, temperature, top_p, top_k, repetition_penalty, num_beams, seed)
        yield from self._ask(self._conversation(request), *_typed(said), chosen, _arrived(request))

    @_told
    def example(self, request: gr.Request, event: gr.SelectData, *chosen: float) -> Iterator[Update]:
        """Ask what an example asks."""
        index = event.index if isinstance(event.index, int) else event.index[0]
        if not 0 <= index < len(self.examples):
            raise ValueError("there is no such example")
        example = self.examples[index]
        files = [str(file) for file in example.files]
        yield from self._ask(self._conversation(request), example.text, files, chosen, _arrived(request))

    def _ask(
        self, conversation: Conversation, text: str, files: list[str], chosen: Sequence[float], since: float
    ) -> Iterator[Update]:
        if conversation.ended(since):  # while it waited for its turn
            yield self.show(conversation, self.box(text, files))
            return
        media: list[Medium] = []
        kept, problems = list(files), []
        try:
            settings = read(self.sliders, chosen)
            for number, file in enumerate(files, 1):
                status = f"Looking at {Path(file).name[:100]} ({number} of {len(files)}) …"
                yield self.show(conversation, _busy_box(), status)
                try:
                    shown = conversation.attach(file, len(media))
                except ValueError as error:
                    problems.append(self.words(error))
                    kept.remove(file)
                else:
                    media += shown
                    kept[kept.index(file)] = str(shown[0].source)
            if problems:
                raise ValueError("\n".join(problems))
            yield self.show(conversation, _busy_box(), "Reading …")
            yield from self._answers(conversation, conversation.ask(text, media, settings, since))
        except ValueError as error:
            yield self.show(conversation, self.box(text, kept), self.words(error), wrong=True)
            return
        yield self._over(conversation, since)

    @_told
    def regenerate(
        self,
        max_new_tokens: float,
        temperature: float,
        top_p: float,
        top_k: float,
        repetition_penalty: float,
        num_beams: float,
        seed: float,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Answer the last question once more."""
        chosen = (max_new_tokens, temperature, top_p, top_k, repetition_penalty, num_beams, seed)
        conversation = self._conversation(request)
        yield from self._again(conversation, conversation.regenerate, chosen, _arrived(request))

    @_told
    def edit(self, request: gr.Request, event: gr.EditData, *chosen: float) -> Iterator[Update]:
        """Ask an earlier question differently."""
        conversation = self._conversation(request)
        turn = view.turn_of(conversation.sides[0], event.index)
        begin = functools.partial(conversation.edit, turn, markup.unescape(str(event.value)))
        yield from self._again(conversation, begin, chosen, _arrived(request))

    def _again(
        self,
        conversation: Conversation,
        begin: Callable[[GenerationSettings, float], Iterator[None]],
        chosen: Sequence[float],
        since: float,
    ) -> Iterator[Update]:
        settings = read(self.sliders, chosen)
        yield self.show(conversation, gr.MultimodalTextbox(submit_btn=False, stop_btn=True), "Reading …")
        yield from self._answers(conversation, begin(settings, since))
        yield self._over(conversation, since)

    def _answers(self, conversation: Conversation, answers: Iterator[None]) -> Iterator[Update]:
        for _ in answers:
            yield self.show(conversation, status="Answering …")

    def _over(self, conversation: Conversation, since: float) -> Update:
        closing = self.visitors.closing
        # At the end of the server conversations are cleared, too, perhaps before this is asked for.
        status = CLOSING if closing else "" if conversation.cleared(since) else view.account(conversation)
        return self.show(conversation, _unchanged_box(), status, wrong=closing)

    def stop(self, request: gr.Request) -> str:
        """End the answer that is being given, or the question that waits for its turn."""
        try:
            self.visitors.of(request.session_hash, request.request.scope[OWNER]).stop()
        except ValueError as error:
            return view.status(self.words(error), wrong=True)
        return view.status("Stopping …")

    @_told
    def mute(self, seen: list[int], request: gr.Request) -> Iterator[Update]:
        """Let coming answers see and hear only these media (their numbers)."""
        conversation = self._conversation(request)
        conversation.mute(set(range(len(conversation.media))) - set(seen))
        hint = "Ask, or press ↻ below the last answer: what does it say without?" if conversation.muted else ""
        yield self.show(conversation, status=hint)

    @_told
    def clear(self, request: gr.Request) -> Iterator[Update]:
        """Forget the conversation."""
        conversation = self._conversation(request)
        conversation.clear()
        yield self.show(conversation, self.box())

    def save(self, request: gr.Request) -> tuple[str | None, str]:
        """Write the conversation to a file, media included."""
        return self._save(0, request)

    def save_other(self, request: gr.Request) -> tuple[str | None, str]:
        """The same with the second model's answers."""
        return self._save(1, request)

    def _save(self, side: int, request: gr.Request) -> tuple[str | None, str]:
        try:
            conversation = self._conversation(request)
            plain = conversation.save(side)
            file = conversation.folder / "saved" / NAME
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(plain, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except (ValueError, OSError) as error:
            return None, view.status(self.words(error), wrong=True)
        return str(file), view.status("")

    @_told
    def load(self, file: dict[str, Any] | None, request: gr.Request) -> Iterator[Update]:
        """Go on with a conversation from such a file."""
        conversation = self._conversation(request)
        path = self.visitors.store.take((file or {}).get("path", ""), conversation.folder)
        try:
            plain = parse_json(read_bytes(path, self.visitors.store.limits.max_bytes), path.name)
        except DocumentError as error:
            raise ValueError(f"{path.name} is no conversation: it cannot be read as JSON ({error.reason})") from None
        finally:
            self.visitors.store.remove(path.parent)
        conversation.load(plain)
        count = len(conversation.turns)
        yield self.show(conversation, self.box(), f"{count} turn{'s' * (count != 1)} loaded")

    def picture(self, said: dict[str, Any] | None, file: dict[str, Any] | None) -> tuple[Any, None]:
        """Put what the camera took into the text box."""
        text, files = _typed(said)
        taken = [file["path"]] if file else []
        return gr.MultimodalTextbox(value={"text": text, "files": self.here([*files, *taken])}), None

    def leave(self, request: gr.Request) -> None:
        """Nothing: gradio's pages say that they are open only where something listens for their end (guard.py)."""

    def show(self, conversation: Conversation, box: Any = None, status: str = "", wrong: bool = False) -> Update:
        """The conversation as it is now."""
        choices = view.media_choices(conversation)
        seen = [number for number, _ in enumerate(choices) if number not in conversation.muted]
        return (
            *(view.messages(conversation, side) for side in conversation.sides),
            gr.skip() if box is None else box,
            gr.CheckboxGroup(choices=choices, value=seen, visible=bool(choices)),
            view.status(status, wrong),
        )

    def told(self, request: gr.Request, words: str) -> Update:
        """The page as it was, with a message."""
        conversation = self.visitors.find(request.session_hash)
        if conversation is None:
            nothing = (gr.skip() for _ in range(len(self.visitors.engines)))
            return (*nothing, _unchanged_box(), gr.skip(), view.status(words, wrong=True))
        return self.show(conversation, None if conversation.busy else _unchanged_box(), words, wrong=True)

    def box(self, text: str = "", files: Sequence[str] = ()) -> Any:
        """The text box with these in it."""
        return gr.MultimodalTextbox(value={"text": text, "files": self.here(files)}, submit_btn=True, stop_btn=False)

    def here(self, files: Sequence[str]) -> list[str]:
        """Those files that lie in the page's folder. (Gradio would copy any other of this machine's to the page.)"""
        return [file for file in files if self.visitors.store.find(file)]

    def words(self, error: Exception) -> str:
        """A message without the folders of this machine."""
        return view.without_folders(str(error), self.visitors.store.root)

    def _conversation(self, request: gr.Request) -> Conversation:
        conversation = self.visitors.of(request.session_hash, request.request.scope[OWNER])
        if conversation.forgotten:
            conversation.forgotten = False
            raise ValueError(FORGOTTEN)
        return conversation


def _typed(said: dict[str, Any] | None) -> tuple[str, list[str]]:
    """Text and files of the text box, as calls.py lets them in."""
    return ("", []) if said is None else (said["text"], [file["path"] for file in said["files"]])


def _arrived(request: gr.Request) -> float:
    return request.request.scope[ARRIVED]


def _busy_box() -> Any:
    return gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)


def _unchanged_box() -> Any:
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
