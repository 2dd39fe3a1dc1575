"""Rows of CSV, TSV, JSON, JSON-lines and Parquet files, one at a time: corpora have up to a hundred million of them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

WRAPPERS = ("data", "annotations", "images", "questions", "sentences")
"""Keys under which a JSON object may hold its list."""

_PIECE = 1 << 20
_LINES = 20
"""Line breaks that a quoted field of a TSV may have."""
_SPACE = " \t\r\n\ufeff"

Row = dict[str, Any]


def rows(path: str | Path, wrapper: str | None = None) -> Iterator[tuple[int, Any]]:
    """(index, row) of a table, the kind told by the ending of its name; ``.gz`` may follow that of a text format.

    Args:
        path: .csv, .tsv, .json (a list, or an object that holds one), .jsonl, .parquet.
        wrapper: the key of the list in a JSON object; None tries `WRAPPERS`.

    Raises:
        ValueError: a file that is missing or malformed, with the place; an unknown ending; pyarrow not installed.
    """
    path = Path(path)
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    readers = {".csv": _separated, ".tsv": _tabbed, ".jsonl": _json_lines, ".ndjson": _json_lines}
    try:
        if ending == ".parquet":
            yield from enumerate(_parquet(path))
        elif ending == ".json":
            with _open(path) as file:
                yield from enumerate(_json(path, file, wrapper))
        elif ending in readers:
            with _open(path) as file:
                yield from enumerate(readers[ending](path, file))
        else:
            raise ValueError(f"{path}: cannot read '{ending}'; tables are .csv, .tsv, .json, .jsonl or .parquet")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except EOFError as error:
        raise ValueError(f"{path} is cut off: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def count(path: str | Path, wrapper: str | None = None) -> int:
    """How many rows `rows` gives, for the progress bar."""
    if Path(path).suffix.lower() == ".parquet":
        return _parquet_module().ParquetFile(path).metadata.num_rows
    return sum(1 for _ in rows(path, wrapper))


def load_json(path: str | Path) -> Any:
    """A whole JSON file.

    Raises:
        ValueError: when it is missing or malformed, with its name.
    """
    try:
        with _open(Path(path)) as file:
            return json.load(file)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def column(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of `names` that the row has, whatever its case; None when it has none of them."""
    if not isinstance(row, Mapping):
        return None
    for name in names:
        if row.get(name) is not None:
            return row[name]
    folded = {str(key).strip().lower(): value for key, value in row.items()}
    return next((folded[name.lower()] for name in names if folded.get(name.lower()) is not None), None)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _separated(path: Path, file: TextIO) -> Iterator[Row]:
    """Rows of a CSV below its header line. A row with too many fields is {"": what is wrong}."""
    csv.field_size_limit(1 << 24)
    lines = csv.reader(file)
    try:
        header = next(lines, None)
        if header is None:
            raise ValueError(f"{path} is empty; its first line must name the columns")
        for line in lines:
            if line:
                yield _row(header, line)
    except csv.Error as error:
        raise ValueError(f"{path}: line {lines.line_num}: {error}") from error


def _tabbed(path: Path, file: TextIO) -> Iterator[Row]:
    """Rows of a TSV, of both kinds: quoted as CSV is, or (as MiniGPT-4's scripts write) plain text between tabs.

    In the plain kind a caption that begins with a quotation mark must not swallow the lines behind it. A file without
    a header line, as Conceptual Captions comes, has a caption and a URL.
    """
    lines = (line.rstrip("\r\n") for line in file)
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path} is empty; its first line must name the columns")
    header = first.split("\t")
    if any(name.strip().startswith(("http://", "https://")) for name in header):
        header, lines = ["caption", "url", *(f"column_{n}" for n in range(2, len(header)))], chain([first], lines)
    waiting: list[str] = []  # the beginning of what may be one row over several lines
    for line in lines:
        if not waiting and not line:
            continue
        fields = _fields("\n".join([*waiting, line]), len(header))
        if len(fields) < len(header):
            alone = _fields(line, len(header))
            if (
                len(alone) < len(header)
                and len(waiting) < _LINES
                and (waiting or line.startswith('"') or '\t"' in line)
            ):
                waiting.append(line)
                continue
            yield from (_row(header, text.split("\t")) for text in waiting)
            fields = alone
        waiting = []
        yield _row(header, fields)
    yield from (_row(header, text.split("\t")) for text in waiting)


def _fields(text: str, count: int) -> list[str]:
    """The fields of a line; of several lines only if they are one row with quoted line breaks, else []."""
    plain = text.split("\t")
    broken = "\n" in text
    if len(plain) == count and not broken:
        return [_unquoted(field) for field in plain]
    try:
        quoted = next(csv.reader([text], delimiter="\t", strict=True), [])
    except csv.Error:
        quoted = []
    if len(quoted) == count:
        return quoted
    return [] if broken else plain


def _unquoted(field: str) -> str:
    inner = field[1:-1]
    whole = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else field


def _row(header: list[str], fields: list[str]) -> Row:
    if len(fields) > len(header):
        return {"": f"has {len(fields)} fields, the header has {len(header)}"}
    return dict(zip(header, fields, strict=False))


def _json_lines(path: Path, file: TextIO) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is not valid JSON: {error}") from error


def _json(path: Path, file: TextIO, wrapper: str | None) -> Iterator[Any]:
    start = ""
    while not start and (piece := file.read(64)):
        start = piece.lstrip(_SPACE)
    if start[:1] == "[":
        yield from _list_items(path, file, start[1:])
        return
    if start[:1] != "{":
        raise ValueError(f"{path} is {'empty' if not start else f'not a JSON list or object: {start[:20]!r}'}")
    file.seek(0)
    try:
        tree = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    names = (wrapper,) if wrapper else WRAPPERS
    found = next((tree[name] for name in names if isinstance(tree.get(name), list)), None)
    if found is None:
        raise ValueError(f"{path}: none of the keys {', '.join(names)} holds a list (it has: {', '.join(tree)})")
    yield from found


class _Window:
    """What has been read of a file and not been used yet."""

    def __init__(self, file: TextIO, text: str):
        self.file, self.text, self.place = file, text, 0
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        """Read on; False at the end of the file. Pieces grow with what is waiting, so that nothing is quadratic."""
        piece = self.file.read(max(_PIECE, len(self.text)))
        self.text, self.place = self.text[self.place :] + piece, 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is not a space, or "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in _SPACE:
                self.place += 1
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]

    def value(self) -> Any:
        """The JSON value that starts here. Raises ValueError."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except ValueError:
                if not self.more():
                    raise
                continue
            if end == len(self.text):
                if self.more():
                    continue  # a number at the very end of what was read may go on in the next piece
                end = len(self.text)
            self.place = end
            return value


def _list_items(path: Path, file: TextIO, text: str) -> Iterator[Any]:
    """The items of a JSON list whose bracket was read; no more than a piece of the file is in memory."""
    window, number = _Window(file, text), 0
    if window.peek() == "]":
        return
    while True:
        window.peek()
        try:
            value = window.value()
        except ValueError as error:
            raise ValueError(f"{path}: entry {number} is not valid JSON ({error}); is the file cut off?") from error
        yield value
        mark = window.peek()
        if mark == "]":
            return
        if mark != ",":
            what = f"',' or ']' expected, found {mark!r}" if mark else "the list is not closed; is the file cut off?"
            raise ValueError(f"{path}: after entry {number}: {what}")
        window.place += 1
        number += 1


def _parquet_module() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("reading .parquet needs pyarrow: pip install 'chatbridge[data]' (or pyarrow)") from None
    return pyarrow.parquet


def _parquet(path: Path) -> Iterator[Row]:
    parquet = _parquet_module()
    import pyarrow

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
