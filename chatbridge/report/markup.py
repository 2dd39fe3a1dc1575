"""HTML whose text is escaped unless it says that it is markup already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

VOID = {"meta", "link", "input", "br"}
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and lone surrogates, which JSON may hold and a page may not."""


class Html(str):
    """Markup. Any other string that is put into an element is text, and is escaped."""

    __slots__ = ()


Child = str | None


def escape(text: str) -> Html:
    """Text as markup; what cannot stand in a page becomes U+FFFD."""
    return text if isinstance(text, Html) else Html(html.escape(UNFIT.sub("\ufffd", text)))


def join(parts: Iterable[Child]) -> Html:
    return Html("".join(escape(part) for part in parts if part is not None))


def tag(element: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """An element.

    Args:
        attributes: `class_` is written class, `aria_label` aria-label; True stands alone, None and False are left out.
    """
    written = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written += f" {key}" if value is True else f' {key}="{escape(value if isinstance(value, str) else str(value))}"'
    if element in VOID:
        return Html(f"<{element}{written}>")
    return Html(f"<{element}{written}>{join(children)}</{element}>")


def data(value: float | int | None, text: str) -> Html:
    """A figure: readable for people, exact for programs."""
    return escape(text) if value is None else tag("data", text, value=repr(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, numeric: Iterable[int] = ()) -> Html:
    """A table that scrolls by itself where it is wider than the screen.

    Args:
        head: one heading a column; rows: the first cell of each names it.
        caption: says what the table holds, to screen readers.
        numeric: columns that are aligned to the right.
    """
    right = set(numeric)
    heads = [tag("th", cell, scope="col", class_="n" if i in right else None) for i, cell in enumerate(head)]
    lines = []
    for row in rows:
        cells = [tag("th", row[0], scope="row", class_="n" if 0 in right else None)]
        cells += [tag("td", cell, class_="n" if i in right else None) for i, cell in enumerate(row[1:], 1)]
        lines.append(tag("tr", *cells))
    inner = tag(
        "table", tag("caption", caption, class_="hidden"), tag("thead", tag("tr", *heads)), tag("tbody", *lines)
    )
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def details(summary: str, *children: Child, anchor: str | None = None) -> Html:
    return tag("details", tag("summary", summary), *children, id=anchor)
