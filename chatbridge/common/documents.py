"""Small files that hold data about data: JSON, YAML and JSON lines, read with one error for all that can be wrong with
them, and written whole.

Whoever opens a file of somebody else's, of whatever kind, opens it with `open_regular`: opening a named pipe waits for
a writer for ever, and devices never end.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

LFS_START = b"version https://git-lfs"
"""What a Git LFS pointer begins with (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""

MAX_BYTES = 1 << 30
"""Of a file that is read whole."""

MAX_NODES = 1_000_000
"""Of a YAML file after its aliases are written out: nine lines of aliases can stand for a thousand million nodes."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class DocumentError(ValueError):
    """A file that cannot be read, or is not what its place needs.

    Attributes:
        source: the file as it was named. reason: what is wrong with it and, where it helps, what to do.
    """

    def __init__(self, source: str | Path, reason: str):
        self.source, self.reason = str(source), reason
        super().__init__(f"{self.source}: {reason}")

    def __reduce__(self) -> tuple:
        return type(self), (self.source, self.reason)


def open_regular(path: str | Path) -> BinaryIO:
    """A file opened for reading, if it is a regular one (or a link to one); never waits.

    Raises:
        OSError, ValueError: as `open`. DocumentError: a folder, a named pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        problem = irregular(os.fstat(descriptor))
        if problem:
            raise DocumentError(path, problem)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def irregular(found: os.stat_result) -> str | None:
    """Why what was found is not a regular file, in words for an error; None when it is one."""
    if stat.S_ISREG(found.st_mode):
        return None
    if stat.S_ISDIR(found.st_mode):
        return "is a folder, a file was expected"
    return "is a pipe, a socket or a device, a regular file was expected"


def read_bytes(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """All of a regular file.

    Raises:
        DocumentError: missing, not permitted, not a regular file, larger than `most`, or a Git LFS pointer.
    """
    data = _read(path, most + 1)
    if len(data) > most:
        raise DocumentError(path, f"has more than the {most:,} bytes that are read whole")
    return data


def check_file(path: str | Path) -> None:
    """Raise DocumentError unless a file is there, may be read, is a regular one, and no Git LFS pointer."""
    _read(path, len(LFS_START))


def _read(path: str | Path, count: int) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(count)
    except DocumentError:
        raise
    except FileNotFoundError:
        raise DocumentError(path, MISSING) from None
    except PermissionError:
        raise DocumentError(path, "no permission to read it; allow it for this user (chmod, chown)") from None
    except (OSError, ValueError) as error:  # name too long, NUL in the name, a failing disk
        raise DocumentError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except MemoryError:
        raise DocumentError(path, "does not fit into memory") from None
    if data.startswith(LFS_START):
        raise DocumentError(path, LFS_REASON)
    return data


MISSING = "does not exist"
LFS_REASON = "is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'"


def read_text(path: str | Path, most: int = MAX_BYTES) -> str:
    """A UTF-8 file as text, without a byte order mark. Raises DocumentError."""
    return _decoded(read_bytes(path, most), path)


def read_json(path: str | Path, most: int = MAX_BYTES) -> Any:
    """What a JSON file holds. Raises DocumentError."""
    return parse_json(read_bytes(path, most), path)


def read_yaml(path: str | Path, most: int = MAX_BYTES) -> Any:
    """What a YAML file holds: plain values only, nothing that names a class. Raises DocumentError."""
    return parse_yaml(read_bytes(path, most), path)


def parse_json(data: bytes | str, source: str | Path) -> Any:
    """What JSON text holds; `source` is named in errors.

    Raises:
        DocumentError: malformed, not UTF-8, nested too deeply, or with a number of thousands of digits.
    """
    try:
        return json.loads(_decoded(data, source))
    except DocumentError:
        raise
    except RecursionError:
        raise DocumentError(source, "is nested too deeply") from None
    except (ValueError, MemoryError) as error:
        raise DocumentError(source, f"is not valid JSON: {error or 'it does not fit into memory'}") from None


def parse_yaml(data: bytes | str, source: str | Path) -> Any:
    """What YAML text holds; `source` is named in errors. Raises DocumentError."""
    text = check_yaml(data, source)
    try:
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML's constructors raise anything: KeyError for `!!bool maybe`
        raise DocumentError(source, f"is not valid YAML: {_one_line(error)}") from None


def check_yaml(data: bytes | str, source: str | Path, most: int = MAX_NODES) -> str:
    """YAML text that is well formed and holds `most` values at most when its aliases are written out.

    Raises DocumentError.
    """
    text = _decoded(data, source)
    try:
        if _nodes(yaml.compose(text, Loader=yaml.SafeLoader)) > most:
            raise DocumentError(source, f"has more than {most:,} values once its aliases are written out")
    except DocumentError:
        raise
    except RecursionError:
        raise DocumentError(source, "is nested too deeply, or an alias holds itself") from None
    except Exception as error:
        raise DocumentError(source, f"is not valid YAML: {_one_line(error)}") from None
    return text


def json_line(value: Any) -> str:
    """A line of a file of JSON lines, to be written with errors="backslashreplace": names of files need not be text."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def json_object(line: bytes) -> dict[str, Any] | None:
    """What a line of a log holds (NaN and Infinity included); None for anything but an object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def json_objects(file: Path) -> Iterator[dict[str, Any]]:
    """What the lines of a log hold; nothing where there is no file. Rubbish and a line that was cut are left out."""
    for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
        row = json_object(line) if line.endswith(b"\n") else None
        if row is not None:
            yield row


def write_whole(file: Path, text: str | Iterable[str], durable: bool = False) -> None:
    """Put text (or pieces of it) in a file's place at once: readers find the old one or the new one, also after a kill
    and, where it is `durable`, after a power cut."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as out:
            out.writelines([text] if isinstance(text, str) else text)
            if durable:
                out.flush()
                os.fsync(out.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def repaired(text: str) -> str:
    """Text that can be written as UTF-8: halves of an emoji are joined where both are there, else become U+FFFD.

    JSON may spell half a surrogate pair (``"\\ud83d"``), and bytes that are not UTF-8 may have come in as surrogates.
    """
    if not _SURROGATE.search(text):
        return text
    joined = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _SURROGATE.sub("\ufffd", joined)


def _nodes(node: yaml.Node | None, counted: dict[int, int] | None = None) -> int:
    """How many values a YAML node stands for, each alias counted as often as it is used."""
    counted = {} if counted is None else counted
    if node is None:
        return 0
    if id(node) not in counted:
        children = (
            [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        )
        inner = 0 if isinstance(node, yaml.ScalarNode) else sum(_nodes(child, counted) for child in children)
        counted[id(node)] = 1 + inner
    return counted[id(node)]


def _decoded(data: bytes | str, source: str | Path) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(source, f"is not UTF-8 text (byte {error.start}: {data[error.start]:#04x})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
