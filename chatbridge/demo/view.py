"""A conversation as gradio's chat shows it: messages, media and notes as HTML, everything from outside escaped."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from chatbridge.demo.conversation import Conversation, ModelChat
from chatbridge.demo.previews import SPECTROGRAM, Preview
from chatbridge.inference import Exchange, Medium, Reply

FILE_ROUTE = "gradio_api/file="
"""Where gradio serves files from, relative to the page."""

INVISIBLE = "\N{ZERO WIDTH SPACE}"

PICTURES, VIDEOS, SOUNDS = (".png", ".jpg"), (".mp4", ".webm"), (".wav", ".mp3", ".flac", ".ogg")

Message = dict[str, Any]
"""Of gradio's chat: a role and content."""


def messages(conversation: Conversation, chat: ModelChat) -> list[Message]:
    """All turns with one model: a message each for the question, with its media in front, and for the answer."""
    shown, muted, place = [], conversation.muted, 0
    last = len(chat.session.turns) - 1
    for number, turn in enumerate(list(chat.session.turns)):
        marks = [place + at in muted for at in range(len(turn.media))]
        place += len(turn.media)
        shown.append({"role": "user", "content": _question(conversation, turn, marks)})
        answer = chat.partial if number == last and chat.partial is not None else turn.answer
        note = _note(conversation, turn, chat.replies.get(number), chat.muted.get(number, []))
        content = []
        if note and chat.partial is None:
            content.append(_html(f'<span class="cb-note">{html.escape(note)}</span>'))
        if answer is not None:
            content.append(_text(answer or "(no words)"))
        if content:
            shown.append({"role": "assistant", "content": content})
    return shown


def turn_of(chat: ModelChat, index: int | tuple[int, int] | list[int]) -> int:
    """Which turn the message at an index of `messages` belongs to.

    Raises:
        ValueError: when there is no such message.
    """
    place, at = index if isinstance(index, int) else index[0], 0
    for number, turn in enumerate(chat.session.turns):
        if at == place:
            return number
        at += 1 if turn.answer is None else 2
    raise ValueError("this question is no longer in the conversation")


def media_choices(conversation: Conversation) -> list[tuple[str, int]]:
    """A label and the number of every medium."""
    return [(f"{n}. {label(conversation, medium)}", n - 1) for n, medium in enumerate(conversation.media, 1)]


def label(conversation: Conversation, medium: Medium) -> str:
    """Such as "picture cat.png"."""
    word = {"image": "picture ", "video": "video ", "audio": "sound "}.get(medium.modality, f"{medium.modality} ")
    name = conversation.preview_of(medium).label
    return name if name.startswith(word) else word + name


def statistics(conversation: Conversation) -> str:
    """Tokens, times and reuse of the last answers, a line for each model."""
    lines = []
    for chat in conversation.chats:
        reply = chat.replies.get(len(chat.session.turns) - 1)
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


def escape(text: str) -> str:
    """Text for gradio's chat, which takes it for HTML, so that it is shown, edited and copied as it stands.

    No tag and no character reference begins with a character that is neither letter nor mark, so an invisible one is
    inserted behind each character that could begin one. (Users who edit their question would see entities.)
    """
    return text.replace("&", "&" + INVISIBLE).replace("<", "<" + INVISIBLE)


def unescape(text: str) -> str:
    """The inverse of `escape`."""
    return text.replace("&" + INVISIBLE, "&").replace("<" + INVISIBLE, "<")


def _question(conversation: Conversation, turn: Exchange, muted: list[bool]) -> list[Message]:
    content: list[Message] = []
    if turn.media:
        figures = [_figure(conversation.preview_of(one), mark) for one, mark in zip(turn.media, muted, strict=True)]
        content.append(_html('<div class="cb-media">' + "".join(figures) + "</div>"))
    if turn.text:
        content.append(_text(turn.text))
    return content


def _note(conversation: Conversation, turn: Exchange, reply: Reply | None, muted: list[Medium]) -> str:
    """Remarks on an answer."""
    notes = []
    if muted:
        notes.append("without " + ", ".join(label(conversation, medium) for medium in muted))
    if turn.finish == "cancelled":
        notes.append("stopped")
    elif turn.finish == "length":
        notes.append("cut off: see “Length at most”")
    notes += reply.remarks if reply is not None else []
    if reply is not None and reply.dropped_turns:
        notes.append(f"the oldest {reply.dropped_turns} turns no longer fit and were left out")
    return "; ".join(notes)


def _figure(preview: Preview, muted: bool) -> str:
    name = html.escape(preview.label)
    parts = "".join(_player(file, name) for file in preview.files)
    kinds = ["muted"] * muted + ["wide"] * any(_is_sound(file) for file in preview.files)
    caption = f'<span class="cb-name">{name}</span>' + '<span class="cb-muted">muted</span>' * muted
    caption += f"<small>{html.escape(preview.detail)}</small>" if preview.detail else ""
    return f'<figure class="{" ".join(kinds)}">{parts}<figcaption>{caption}</figcaption></figure>'


def _is_sound(file: Path) -> bool:
    return file.suffix in SOUNDS or file.stem == SPECTROGRAM


def _player(file: Path, name: str) -> str:
    address = html.escape(FILE_ROUTE + quote(file.as_posix()))
    if file.suffix in PICTURES:
        alt = f"spectrogram of {name}" if file.stem == SPECTROGRAM else name
        return f'<a href="{address}" target="_blank" rel="noopener"><img src="{address}" alt="{alt}"></a>'
    if file.suffix in VIDEOS:
        return f'<video src="{address}" controls playsinline preload="metadata" aria-label="{name}"></video>'
    return f'<audio src="{address}" controls preload="metadata" aria-label="{name}"></audio>'


def _text(text: str) -> Message:
    # Gradio strips the indentation of plain strings.
    return {"type": "text", "text": escape(text)}


def _html(content: str) -> Message:
    return {"type": "component", "component": "html", "value": content, "constructor_args": {}, "props": {}}
