"""Files of JSON entries, a list or one a line, read entry by entry: they have up to a hundred million of them."""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Iterator
from typing import Any, BinaryIO

from chatbridge.common.documents import LFS_REASON, LFS_START, DocumentError

logger = logging.getLogger("chatbridge")

CHUNK = 1 << 20
"""Bytes that are read at once."""

MAX_ENTRY = 1 << 26
"""Characters of one entry."""

_SPACE = " \t\r\n\ufeff"
_LONGEST_WORD = 32


def json_entries(file: BinaryIO, source: Any, lines: bool = False) -> Iterator[tuple[Any, int, int]]:
    """(entry, its first byte, the one behind its last) of a JSON list or, with `lines`, of JSON lines.

    Bytes that are not UTF-8 come as surrogates (see `repaired`), one for each.

    Args:
        source: what errors call the file.

    Raises:
        DocumentError: anything else, with the place; whatever stands behind the list, too.
    """
    window, number = _Window(file, source), 0
    first = window.peek()
    if not first:
        raise DocumentError(source, "is empty; an annotation file is a JSON list of entries")
    if not lines:
        if first != "[":
            raise DocumentError(source, window.no_list())
        window.place += 1
        first = window.peek()
    while first and first != ("" if lines else "]"):
        yield window.entry(number)
        first = window.end_of_line(number) if lines else window.comma(number)
        number += 1
    if lines:
        return
    if not first:
        raise window.error("the list is not closed; is the file cut off?")
    window.place += 1
    if rest := window.peek():
        raise window.error(f"more behind the end of the list, beginning with {rest!r}; a file holds one list")


class _Window:
    """What has been read of a file and not been used yet."""

    def __init__(self, file: BinaryIO, source: Any):
        self.file, self.source = file, source
        self.text, self.place = "", 0
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._values = json.JSONDecoder()
        self._at_end = False
        self._bytes, self._counted = 0, 0  # bytes before the character `_counted` of the text
        self._lines = 1  # that of the text's first character

    def more(self) -> bool:
        """Read on; False at the end of the file. Pieces grow with what is waiting, so that nothing is quadratic."""
        waiting, added = len(self.text) - self.place, ""
        if waiting > MAX_ENTRY:
            raise self.error(f"an entry of more than {MAX_ENTRY:,} characters, or one that does not end")
        while not added and not self._at_end:
            piece = self.file.read(max(CHUNK, waiting))
            self._at_end = not piece
            try:
                added = self._characters.decode(piece, self._at_end)
            except UnicodeDecodeError:
                logger.warning("%s: not all of it is UTF-8 text; what is not is read as U+FFFD", self.source)
                self._characters.errors = "surrogateescape"
                added = self._characters.decode(piece, self._at_end)
        if not added:
            return False
        self.byte(self.place)
        self._lines += self.text.count("\n", 0, self.place)
        self.text, self.place, self._counted = self.text[self.place :] + added, 0, 0
        return True

    def byte(self, place: int) -> int:
        """How many bytes of the file lie before a place of the text; asked from front to back."""
        piece = self.text[self._counted : place]
        self._bytes += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogateescape"))
        self._counted = place
        return self._bytes

    def peek(self, space: str = _SPACE) -> str:
        """The next character that is not a space, or "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in space:
                self.place += 1
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]

    def entry(self, number: int) -> tuple[Any, int, int]:
        """The JSON value that starts here, and its bytes."""
        while True:
            try:
                value, end = self._values.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                # What is cut is a string, which begins anywhere, or a word or number at the very end.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _LONGEST_WORD
                if not cut or not self.more():
                    hint = "; is the file cut off?" if cut else ""
                    raise self.error(f"entry {number}: {error.msg}{hint}", error.pos) from None
            except RecursionError:
                raise self.error(f"entry {number} is nested too deeply") from None
            except (ValueError, MemoryError) as error:  # a number of thousands of digits
                raise self.error(f"entry {number}: {error or 'does not fit into memory'}") from None
            else:
                if end < len(self.text) or not self.more():  # a number may go on in what has not been read
                    break
        start = self.byte(self.place)
        self.place = end
        return value, start, self.byte(end)

    def comma(self, number: int) -> str:
        """Pass the comma behind an entry; the first character of the next one, or the list's end."""
        mark = self.peek()
        if mark == ",":
            self.place += 1
            mark = self.peek()
            return "," if mark == "]" else mark  # which `entry` refuses
        if mark and mark != "]":
            raise self.error(f"',' or ']' expected behind entry {number}, found {mark!r}")
        return mark

    def end_of_line(self, number: int) -> str:
        """Pass the end of an entry's line; the first character of the next one."""
        mark = self.peek(" \t\r")
        if mark not in ("", "\n"):
            raise self.error(f"entry {number} is followed by {mark!r} on its line; JSON lines have an entry a line")
        return self.peek()

    def no_list(self) -> str:
        beginning = self.text[self.place : self.place + len(LFS_START)]
        if beginning.encode("utf-8", "surrogateescape") == LFS_START:
            return LFS_REASON
        if any("\udc80" <= character <= "\udcff" for character in beginning):
            return "is not UTF-8 text"
        return f"is not a JSON list: it starts with {beginning[:20]!r}"

    def error(self, reason: str, place: int | None = None) -> DocumentError:
        line = self._lines + self.text.count("\n", 0, self.place if place is None else place)
        return DocumentError(self.source, f"is not valid JSON: line {line}: {reason}")
