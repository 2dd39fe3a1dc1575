"""Media as HTML, in figures; everything that a visitor or a model wrote is escaped."""

from __future__ import annotations

import html
from pathlib import Path
from urllib.parse import quote

from chatbridge.demo.previews import SPECTROGRAM, Preview

ROUTE = "gradio_api/file="
"""Where gradio serves files from, relative to the page."""

INVISIBLE = "\N{ZERO WIDTH SPACE}"

PICTURES, VIDEOS, SOUNDS = (".png", ".jpg"), (".mp4", ".webm"), (".wav", ".mp3", ".flac", ".ogg")


def escape(text: str) -> str:
    """Text for gradio's chat, which takes it for HTML, in a form that is shown, edited and copied as it stands.

    No tag and no character reference begins with a character that is neither letter nor mark; an invisible one is put
    behind each that could begin one. (Entities instead would be seen by those who edit their question.)
    """
    return text.replace("&", "&" + INVISIBLE).replace("<", "<" + INVISIBLE)


def unescape(text: str) -> str:
    """What `escape` was given."""
    return text.replace("&" + INVISIBLE, "&").replace("<" + INVISIBLE, "<")


def figures(shown: list[tuple[Preview, bool]]) -> str:
    """Previews side by side, each with its name; those that are muted are marked."""
    return '<div class="cb-media">' + "".join(_figure(one, muted) for one, muted in shown) + "</div>"


def _figure(shown: Preview, muted: bool) -> str:
    name = html.escape(shown.label)
    parts = "".join(_part(file, name) for file in shown.files)
    kinds = ["muted"] * muted + ["wide"] * any(_is_sound(file) for file in shown.files)
    caption = f'<span class="cb-name">{name}</span>' + '<span class="cb-muted">muted</span>' * muted
    caption += f"<small>{html.escape(shown.detail)}</small>" if shown.detail else ""
    return f'<figure class="{" ".join(kinds)}">{parts}<figcaption>{caption}</figcaption></figure>'


def _is_sound(file: Path) -> bool:
    return file.suffix in SOUNDS or file.stem == SPECTROGRAM


def _part(file: Path, name: str) -> str:
    address = html.escape(ROUTE + quote(file.as_posix()))
    if file.suffix in PICTURES:
        alt = f"spectrogram of {name}" if file.stem == SPECTROGRAM else name
        return f'<a href="{address}" target="_blank" rel="noopener"><img src="{address}" alt="{alt}"></a>'
    if file.suffix in VIDEOS:
        return f'<video src="{address}" controls playsinline preload="metadata" aria-label="{name}"></video>'
    return f'<audio src="{address}" controls preload="metadata" aria-label="{name}"></audio>'
