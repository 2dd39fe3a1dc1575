"""Rows of CSV, TSV, JSON, JSON-lines and Parquet files, one at a time: corpora have up to a hundred million of them."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from chatbridge.common.documents import (
    LFS_REASON,
    LFS_START,
    MAX_BYTES,
    DocumentError,
    open_regular,
    parse_json,
    repaired,
)
from chatbridge.common.json_stream import json_entries
from chatbridge.datasets.records import is_blank

logger = logging.getLogger("chatbridge")

WRAPPERS = ("data", "annotations", "images", "questions", "sentences")
"""Keys under which a JSON object may hold its list."""

LONGEST_LINE = 1 << 24
"""Characters of a line, or of a field."""

_LINES = 20
"""Line breaks that a quoted field of a TSV may have."""

Row = dict[str, Any]
Something = TypeVar("Something")


def rows(path: str | Path, wrapper: str | None = None) -> Iterator[tuple[int, Any]]:
    """(index, row) of a table, whose kind its file's ending names; ``.gz`` may follow that of a text format.

    Args:
        path: .csv, .tsv, .json (a list, or an object that holds one), .jsonl, .parquet.
        wrapper: the key of the list in a JSON object; None tries `WRAPPERS`.

    Raises:
        ValueError: a file that is missing or malformed, with the place; an unknown ending; pyarrow not installed.
    """
    path = Path(path)
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    readers = {".csv": _separated, ".tsv": _tabbed, ".json": partial(_json, wrapper=wrapper), ".jsonl": _json_lines}
    readers[".ndjson"] = _json_lines
    if ending == ".parquet":
        yield from enumerate(_parquet(path))
    elif ending in readers:
        with _opened(path) as file:
            yield from enumerate(readers[ending](path, file))
    else:
        raise ValueError(f"{path}: cannot read '{ending}'; tables are .csv, .tsv, .json, .jsonl or .parquet")


def count(path: str | Path, wrapper: str | None = None) -> int:
    """How many rows `rows` gives, for the progress bar."""
    if Path(path).suffix.lower() == ".parquet":
        with _parquet_file(Path(path)) as file:
            return file.metadata.num_rows
    return sum(1 for _ in rows(path, wrapper))


def load_json(path: str | Path) -> Any:
    """A whole JSON file.

    Raises:
        ValueError: when it is missing or malformed, with its name.
    """
    with _opened(Path(path)) as file:
        return _whole(Path(path), file)


def column(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of `names` that the row has, whatever its case; None when it has none of them.

    What is null or NaN (as tables have it) is not there; 0 is.
    """
    if not isinstance(row, Mapping):
        return None
    for name in names:
        if not _absent(row.get(name)):
            return row[name]
    folded = {str(key).strip().lower(): value for key, value in row.items()}
    return next((folded[name.lower()] for name in names if not _absent(folded.get(name.lower()))), None)


def text(row: Mapping[str, Any], *names: str) -> str:
    """`column` as text without spaces around it, "" for what is not there; a number without a fraction has none."""
    value = column(row, names)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if is_blank(value) else str(value).strip()


def guarded(items: Iterable[Something], *sources: Path) -> Iterator[Something]:
    """The same items; a reader that meets something other than what its corpus has raises with the file's name."""
    number = 0
    try:
        for number, item in enumerate(items, 1):  # noqa: B007
            yield item
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        where = f"behind sample {number - 1}" if number else "at its beginning"
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DocumentError(
            ", ".join(map(str, sources)), f"has another form than is read here, {where} ({what})"
        ) from error


def _absent(value: Any) -> bool:
    return value is None or isinstance(value, float) and is_blank(value)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A table's bytes, unpacked; whatever goes wrong while it is read is raised with its name."""
    try:
        with open_regular(path) as file:
            yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
    except DocumentError:
        raise
    except FileNotFoundError:
        raise DocumentError(path, "does not exist") from None
    except (EOFError, zlib.error) as error:
        raise DocumentError(path, f"is cut off or damaged: {error}") from error
    except OSError as error:
        raise DocumentError(path, f"cannot be read ({error.strerror or error})") from error


def _whole(path: Path, file: BinaryIO) -> Any:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DocumentError(path, f"has more than the {MAX_BYTES:,} bytes that are read whole")
    if data.startswith(LFS_START):
        raise DocumentError(path, LFS_REASON)
    return parse_json(data.decode("utf-8-sig", "surrogateescape"), path)


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """A text file's lines with their ends. Bytes that are not UTF-8 come as surrogates (see `repaired`)."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    number, warned = 0, False
    while line := text.readline(LONGEST_LINE):
        number += 1
        if not warned and repaired(line) != line:
            logger.warning("%s: not all of it is UTF-8 text (line %d); what is not is read as U+FFFD", path, number)
            warned = True
        if len(line) == LONGEST_LINE:
            raise DocumentError(path, f"line {number} has more than {LONGEST_LINE:,} characters")
        if number == 1 and line.encode("utf-8", "surrogateescape").startswith(LFS_START):
            raise DocumentError(path, LFS_REASON)
        yield line


def _separated(path: Path, file: BinaryIO) -> Iterator[Row]:
    """Rows of a CSV below its header line. A row with too many fields is {"": what is wrong}."""
    csv.field_size_limit(LONGEST_LINE)
    lines = csv.reader(_lines(path, file))
    try:
        header = next(lines, None)
        if header is None:
            raise ValueError(f"{path} is empty; its first line must name the columns")
        for line in lines:
            if line:
                yield _row(header, line)
    except csv.Error as error:
        raise ValueError(f"{path}: line {lines.line_num}: {error}") from error


def _tabbed(path: Path, file: BinaryIO) -> Iterator[Row]:
    """Rows of a TSV, of both kinds: quoted as CSV is, or (as MiniGPT-4's scripts write) plain text between tabs.

    In the plain kind a caption that begins with a quotation mark must not swallow the lines behind it. A file without
    a header line, as Conceptual Captions comes, has a caption and a URL.
    """
    lines = (line.rstrip("\r\n") for line in _lines(path, file))
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


def _json_lines(path: Path, file: BinaryIO) -> Iterator[Any]:
    return (value for value, _, _ in json_entries(file, path, lines=True))


def _json(path: Path, file: BinaryIO, wrapper: str | None) -> Iterator[Any]:
    start = b""
    while not start and (piece := file.read(64)):
        start = piece.removeprefix(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    if start[:1] != b"{":
        yield from (value for value, _, _ in json_entries(file, path))
        return
    tree = _whole(path, file)
    names = (wrapper,) if wrapper else WRAPPERS
    found = next((tree[name] for name in names if isinstance(tree.get(name), list)), None)
    if found is None:
        raise ValueError(f"{path}: none of the keys {', '.join(names)} holds a list (it has: {', '.join(tree)})")
    yield from found


def _parquet_module() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("reading .parquet needs pyarrow: pip install 'chatbridge[data]' (or pyarrow)") from None
    return pyarrow.parquet


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    """An open Parquet file; whatever goes wrong while it is read is raised with its name."""
    parquet = _parquet_module()
    import pyarrow

    try:
        with open_regular(path) as file, parquet.ParquetFile(file) as table:
            yield table
    except DocumentError:
        raise
    except FileNotFoundError:
        raise DocumentError(path, "does not exist") from None
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DocumentError(path, f"is not a readable Parquet file: {' '.join(str(error).split())}") from error


def _parquet(path: Path) -> Iterator[Row]:
    with _parquet_file(path) as table:
        for batch in table.iter_batches(batch_size=4096):
            yield from batch.to_pylist()
