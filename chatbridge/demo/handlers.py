"""Handlers of the page's events: from gradio's calls to a conversation, and back to updates of the page.

Errors are shown in the page's status line, and what was typed is put back into the text box.
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
from chatbridge.demo import view
from chatbridge.demo.conversation import Conversation
from chatbridge.demo.conversation_store import ConversationStore
from chatbridge.demo.examples import ChatExample
from chatbridge.demo.fair_share import OWNER
from chatbridge.demo.gateway import ARRIVAL_TIME
from chatbridge.demo.generation_controls import to_settings
from chatbridge.inference import GenerationSettings, Medium

logger = logging.getLogger("chatbridge")

Update = tuple[Any, ...]
"""New values for the chats, the text box, the list of media and the status line, in this order."""

Event = Callable[..., Iterator[Update]]

EXPIRED = "This conversation was left alone for too long and has been forgotten. Ask again to begin a new one."
CLOSING = "The server is being shut down; this conversation ends here."
MEMORY = "The memory of the GPU does not suffice for this; show less, ask for a shorter answer, or try again later."
INTERNAL_ERROR = "Something went wrong on the server; its log says what."

SAVE_NAME = "chatbridge-conversation.json"


def _report_errors(event: Event) -> Event:
    """Errors of an event are shown on the page."""

    @functools.wraps(event)
    def run(self: Handlers, *arguments: Any) -> Iterator[Update]:
        request = next(one for one in arguments if isinstance(one, gr.Request))
        try:
            yield from event(self, *arguments)
        except ValueError as error:
            yield self.error_update(request, self.error_text(error))
        except torch.OutOfMemoryError:
            logger.exception("out of memory")
            yield self.error_update(request, MEMORY)
        except Exception:
            logger.exception("an error in the page")
            yield self.error_update(request, INTERNAL_ERROR)

    return run


class Handlers:
    """The events of a page.

    Args:
        sliders: of the page's settings, in order. examples: that an empty chat offers.
    """

    def __init__(self, conversations: ConversationStore, sliders: list[gr.Slider], examples: Sequence[ChatExample]):
        self.conversations, self.sliders, self.examples = conversations, sliders, examples

    @_report_errors
    def ask(
        self,
        message: dict[str, Any] | None,
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
        yield from self._ask(self._conversation(request), *_parse_message(message), chosen, _arrival_time(request))

    @_report_errors
    def example(self, request: gr.Request, event: gr.SelectData, *chosen: float) -> Iterator[Update]:
        """Ask what an example asks."""
        index = event.index if isinstance(event.index, int) else event.index[0]
        if not 0 <= index < len(self.examples):
            raise ValueError("there is no such example")
        example = self.examples[index]
        files = [str(file) for file in example.files]
        yield from self._ask(self._conversation(request), example.text, files, chosen, _arrival_time(request))

    def _ask(
        self, conversation: Conversation, text: str, files: list[str], chosen: Sequence[float], asked_at: float
    ) -> Iterator[Update]:
        if conversation.stopped_since(asked_at):  # while it was in the queue
            yield self.show(conversation, self.box(text, files))
            return
        media: list[Medium] = []
        kept, problems = list(files), []
        try:
            settings = to_settings(self.sliders, chosen)
            for number, file in enumerate(files, 1):
                status = f"Looking at {Path(file).name[:100]} ({number} of {len(files)}) …"
                yield self.show(conversation, _busy_box(), status)
                try:
                    shown = conversation.attach(file, len(media))
                except ValueError as error:
                    problems.append(self.error_text(error))
                    kept.remove(file)
                else:
                    media += shown
                    kept[kept.index(file)] = str(shown[0].source)
            if problems:
                raise ValueError("\n".join(problems))
            yield self.show(conversation, _busy_box(), "Reading …")
            yield from self._answers(conversation, conversation.ask(text, media, settings, asked_at))
        except ValueError as error:
            yield self.show(conversation, self.box(text, kept), self.error_text(error), wrong=True)
            return
        yield self._finish(conversation, asked_at)

    @_report_errors
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
        yield from self._again(conversation, conversation.regenerate, chosen, _arrival_time(request))

    @_report_errors
    def edit(self, request: gr.Request, event: gr.EditData, *chosen: float) -> Iterator[Update]:
        """Ask an earlier question differently."""
        conversation = self._conversation(request)
        turn = view.turn_of(conversation.chats[0], event.index)
        start = functools.partial(conversation.edit, turn, view.unescape(str(event.value)))
        yield from self._again(conversation, start, chosen, _arrival_time(request))

    def _again(
        self,
        conversation: Conversation,
        start: Callable[[GenerationSettings, float], Iterator[None]],
        chosen: Sequence[float],
        asked_at: float,
    ) -> Iterator[Update]:
        settings = to_settings(self.sliders, chosen)
        yield self.show(conversation, gr.MultimodalTextbox(submit_btn=False, stop_btn=True), "Reading …")
        yield from self._answers(conversation, start(settings, asked_at))
        yield self._finish(conversation, asked_at)

    def _answers(self, conversation: Conversation, answers: Iterator[None]) -> Iterator[Update]:
        for _ in answers:
            yield self.show(conversation, status="Answering …")

    def _finish(self, conversation: Conversation, asked_at: float) -> Update:
        closing = self.conversations.closing
        # A server that shuts down clears conversations, too, perhaps before this is called.
        status = CLOSING if closing else "" if conversation.cleared_since(asked_at) else view.statistics(conversation)
        return self.show(conversation, _unchanged_box(), status, wrong=closing)

    def stop(self, request: gr.Request) -> str:
        """End the current answer, or cancel a question in the queue."""
        try:
            self.conversations.of(request.session_hash, request.request.scope[OWNER]).stop()
        except ValueError as error:
            return view.status(self.error_text(error), wrong=True)
        return view.status("Stopping …")

    @_report_errors
    def mute(self, shown: list[int], request: gr.Request) -> Iterator[Update]:
        """Mute all media but these (their numbers) in further answers."""
        conversation = self._conversation(request)
        conversation.mute(set(range(len(conversation.media))) - set(shown))
        hint = "Ask, or press ↻ below the last answer: what does it say without?" if conversation.muted else ""
        yield self.show(conversation, status=hint)

    @_report_errors
    def clear(self, request: gr.Request) -> Iterator[Update]:
        """Start anew."""
        conversation = self._conversation(request)
        conversation.clear()
        yield self.show(conversation, self.box())

    def save(self, request: gr.Request) -> tuple[str | None, str]:
        """Write the conversation to a file, media included."""
        return self._save(0, request)

    def save_other(self, request: gr.Request) -> tuple[str | None, str]:
        """The same with the second model's answers."""
        return self._save(1, request)

    def _save(self, number: int, request: gr.Request) -> tuple[str | None, str]:
        try:
            conversation = self._conversation(request)
            plain = conversation.save(number)
            file = conversation.folder / "saved" / SAVE_NAME
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(plain, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except (ValueError, OSError) as error:
            return None, view.status(self.error_text(error), wrong=True)
        return str(file), view.status("")

    @_report_errors
    def load(self, file: dict[str, Any] | None, request: gr.Request) -> Iterator[Update]:
        """Replace the conversation by a saved one."""
        conversation = self._conversation(request)
        path = self.conversations.store.take((file or {}).get("path", ""), conversation.folder)
        try:
            plain = parse_json(read_bytes(path, self.conversations.store.limits.max_bytes), path.name)
        except DocumentError as error:
            raise ValueError(f"{path.name} is no conversation: it cannot be read as JSON ({error.reason})") from None
        finally:
            self.conversations.store.remove(path.parent)
        conversation.load(plain)
        count = len(conversation.turns)
        yield self.show(conversation, self.box(), f"{count} turn{'s' * (count != 1)} loaded")

    def picture(self, message: dict[str, Any] | None, file: dict[str, Any] | None) -> tuple[Any, None]:
        """Put a photo of the camera into the text box."""
        text, files = _parse_message(message)
        taken = [file["path"]] if file else []
        return gr.MultimodalTextbox(value={"text": text, "files": self.own_files([*files, *taken])}), None

    def leave(self, request: gr.Request) -> None:
        """Does nothing: gradio's pages keep a heartbeat only where an unload event is registered (see gateway.py)."""

    def show(self, conversation: Conversation, box: Any = None, status: str = "", wrong: bool = False) -> Update:
        """The conversation as it is now."""
        choices = view.media_choices(conversation)
        seen = [number for number, _ in enumerate(choices) if number not in conversation.muted]
        return (
            *(view.messages(conversation, chat) for chat in conversation.chats),
            gr.skip() if box is None else box,
            gr.CheckboxGroup(choices=choices, value=seen, visible=bool(choices)),
            view.status(status, wrong),
        )

    def error_update(self, request: gr.Request, message: str) -> Update:
        """The unchanged page with an error message."""
        conversation = self.conversations.find(request.session_hash)
        if conversation is None:
            nothing = (gr.skip() for _ in range(len(self.conversations.engines)))
            return (*nothing, _unchanged_box(), gr.skip(), view.status(message, wrong=True))
        return self.show(conversation, None if conversation.busy else _unchanged_box(), message, wrong=True)

    def box(self, text: str = "", files: Sequence[str] = ()) -> Any:
        """The text box with these in it."""
        return gr.MultimodalTextbox(
            value={"text": text, "files": self.own_files(files)}, submit_btn=True, stop_btn=False
        )

    def own_files(self, files: Sequence[str]) -> list[str]:
        """Those files that lie in the page's folder. (Gradio would copy any other file of this machine to the page.)"""
        return [file for file in files if self.conversations.store.find(file)]

    def error_text(self, error: Exception) -> str:
        """The error's message without folders of this machine."""
        return view.without_folders(str(error), self.conversations.store.root)

    def _conversation(self, request: gr.Request) -> Conversation:
        conversation = self.conversations.of(request.session_hash, request.request.scope[OWNER])
        if conversation.expired:
            conversation.expired = False
            raise ValueError(EXPIRED)
        return conversation


def _parse_message(message: dict[str, Any] | None) -> tuple[str, list[str]]:
    """Text and files of the text box, as validated by api_calls.py."""
    return ("", []) if message is None else (message["text"], [file["path"] for file in message["files"]])


def _arrival_time(request: gr.Request) -> float:
    return request.request.scope[ARRIVAL_TIME]


def _busy_box() -> Any:
    return gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)


def _unchanged_box() -> Any:
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
