"""A conversation as the page shows it."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from chatbridge.demo import markup
from chatbridge.demo.conversation import Conversation, Side
from chatbridge.inference import Exchange, Medium, Reply

Message = dict[str, Any]
"""Of gradio's chat: a role and what it shows."""


def messages(conversation: Conversation, side: Side) -> list[Message]:
    """All turns with one model: a message each for the question, with its media in front, and for the answer."""
    shown, muted, place = [], conversation.muted, 0
    last = len(side.session.turns) - 1
    for number, turn in enumerate(list(side.session.turns)):
        marks = [place + at in muted for at in range(len(turn.media))]
        place += len(turn.media)
        shown.append({"role": "user", "content": _question(conversation, turn, marks)})
        answer = side.partial if number == last and side.partial is not None else turn.answer
        note = _note(conversation, turn, side.replies.get(number), side.missing.get(number, []))
        content = []
        if note and side.partial is None:
            content.append(_html(f'<span class="cb-note">{html.escape(note)}</span>'))
        if answer is not None:
            content.append(_text(answer or "(no words)"))
        if content:
            shown.append({"role": "assistant", "content": content})
    return shown


def turn_of(side: Side, index: int | tuple[int, int] | list[int]) -> int:
    """Which turn the message at an index of `messages` belongs to.

    Raises:
        ValueError: when there is no such message.
    """
    place, at = index if isinstance(index, int) else index[0], 0
    for number, turn in enumerate(side.session.turns):
        if at == place:
            return number
        at += 1 if turn.answer is None else 2
    raise ValueError("this question is no longer in the conversation")


def media_choices(conversation: Conversation) -> list[tuple[str, int]]:
    """Every medium that was shown, with its number, for people."""
    return [(f"{n}. {label(conversation, medium)}", n - 1) for n, medium in enumerate(conversation.media, 1)]


def label(conversation: Conversation, medium: Medium) -> str:
    """Such as "picture cat.png"."""
    word = {"image": "picture ", "video": "video ", "audio": "sound "}.get(medium.modality, f"{medium.modality} ")
    name = conversation.preview_of(medium).label
    return name if name.startswith(word) else word + name


def account(conversation: Conversation) -> str:
    """How the last answers came about, in a line."""
    lines = []
    for side in conversation.sides:
        reply = side.replies.get(len(side.session.turns) - 1)
        if reply is None:
            continue
        count = len(reply.token_ids)
        rate = (count - 1) / max(1e-9, reply.seconds - reply.first_seconds) if count > 1 else 0.0
        parts = [f"{count} tokens", f"first after {reply.first_seconds:.2f} s"]
        parts += [f"{rate:.0f} per second"] if rate else []
        parts.append(f"{reply.prompt_positions} positions read, {reply.reused_positions} of them kept from before")
        parts += [f"seed {reply.seed}"] if reply.seed is not None else []
        lines.append(" · ".join(parts))
    return "\n".join(lines)


def status(text: str, wrong: bool = False) -> str:
    """The line below the chat, as HTML."""
    kind, role = (" wrong", "alert") if wrong else ("", "status")
    return f'<div class="cb-status{kind}" role="{role}">{html.escape(text)}</div>'


def without_folders(text: str, root: Path) -> str:
    """A message in which files below a folder go by their names."""
    return re.sub(re.escape(str(root)) + r"/(?:[^/\s:]+/)*", "", text)


def _question(conversation: Conversation, turn: Exchange, muted: list[bool]) -> list[Message]:
    content: list[Message] = []
    if turn.media:
        previews = [conversation.preview_of(medium) for medium in turn.media]
        content.append(_html(markup.figures(list(zip(previews, muted, strict=True)))))
    if turn.text:
        content.append(_text(turn.text))
    return content


def _note(conversation: Conversation, turn: Exchange, reply: Reply | None, missing: list[Medium]) -> str:
    """What is to be known about an answer besides its words."""
    notes = []
    if missing:
        notes.append("without " + ", ".join(label(conversation, medium) for medium in missing))
    if turn.finish == "cancelled":
        notes.append("stopped")
    elif turn.finish == "length":
        notes.append("cut off: see “Length at most”")
    notes += reply.remarks if reply is not None else []
    if reply is not None and reply.dropped_turns:
        notes.append(f"the oldest {reply.dropped_turns} turns no longer fit and were left out")
    return "; ".join(notes)


def _text(text: str) -> Message:
    # Gradio strips the indentation of plain strings.
    return {"type": "text", "text": markup.escape(text)}


def _html(markup: str) -> Message:
    return {"type": "component", "component": "html", "value": markup, "constructor_args": {}, "props": {}}
