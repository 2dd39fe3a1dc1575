"""What every media processor is: a file on disk (or its bytes) in, a tensor of frames or clips out.

See `chatbridge.contracts.Processor`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbridge.common.documents import LFS_REASON, LFS_START, DocumentError, irregular, open_regular, repaired
from chatbridge.common.registry import PROCESSORS
from chatbridge.contracts import Processor

PREPROCESS_ON = ("worker", "device")
"""Where what needs no file is done with training media: in the data-loader worker, or on the model's device."""

LONGEST_REASON = 200
"""Characters of a decoder's message that are passed on: some print pages of their insides."""


class MediaError(ValueError):
    """A medium that cannot be used: it names the file and says why.

    Attributes:
        source: the file (or archive member) as it was asked for.
        reason: what is wrong with it, and where it helps, what to do.
    """

    def __init__(self, source: str, reason: str):
        self.source, self.reason = _printable(str(source)), _printable(reason)
        super().__init__(f"{self.source}: {self.reason}")

    def __reduce__(self) -> tuple:
        # An exception made from one joined message could not travel back from a data-loader worker.
        return type(self), (self.source, self.reason)


def _printable(text: str) -> str:
    """One line that every log and terminal takes: names and damaged headers may hold anything."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in repaired(text))


class MissingMedia(MediaError):
    """There is no such file."""


@dataclass(frozen=True)
class Blob:
    """A medium held in memory, such as one member of a webdataset shard; the name's ending is that of its kind."""

    name: str
    data: bytes


@dataclass(frozen=True)
class ArchiveMember:
    """A medium in an archive, whose bytes are read when its turn comes.

    Attributes:
        name: the archive's and its own, for messages. read: gives the bytes; raises MediaError.
    """

    name: str
    read: Callable[[], bytes]


Source = str | Path | Blob
"""Where a medium comes from: a path, or bytes with a name."""


def name_of(source: Source) -> str:
    """The name that messages use."""
    return source.name if isinstance(source, Blob) else str(source)


def suffix_of(source: Source) -> str:
    """The lower-case ending of the name, with its dot."""
    return Path(name_of(source)).suffix.lower()


def is_folder(source: Source) -> bool:
    """Whether this is a folder of frames; False for what cannot be looked at."""
    return not isinstance(source, Blob) and os.path.isdir(source)


def readable(source: Source) -> str | io.BytesIO:
    """What a decoder opens: the path as text, or a fresh stream over the bytes.

    Raises:
        MediaError: when there is no such file, it is a folder, a pipe, a socket or a device, or it has no bytes.
    """
    if isinstance(source, Blob):
        if not source.data:
            raise MediaError(source.name, "is empty (0 bytes)")
        return for_decoder(source)
    try:
        found = os.stat(source)
    except FileNotFoundError:
        raise MissingMedia(str(source), "does not exist") from None
    except (OSError, ValueError) as error:  # no permission, name too long, NUL or half a character in the name
        reason = getattr(error, "strerror", None) or error
        raise MediaError(str(source), f"cannot be opened ({reason})") from error
    problem = irregular(found) or (None if found.st_size else "is empty (0 bytes)")
    if problem:
        raise MediaError(str(source), problem)
    return for_decoder(source)


def for_decoder(source: Source) -> str | io.BytesIO:
    """As `readable`, of what was looked at already."""
    return _SafeBytesIO(source.data) if isinstance(source, Blob) else str(source)


class _SafeBytesIO(io.BytesIO):
    """Bytes in which nobody can seek before the beginning.

    A damaged header sends soundfile's decoder there, and Python writes what a callback from C raises to the terminal.
    """

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return super().seek(max(offset, 0) if whence == os.SEEK_SET else offset, whence)


class media_errors:  # noqa: N801 (it is used as a function would be)
    """The boundary around all that opens or decodes a medium: whatever goes wrong inside is a `MediaError`.

    Decoders raise anything on what they do not expect, MemoryError, RecursionError and AttributeError included, and one
    odd file must not end a run. A mistake of our own looks like a bad file here, too: the error that it was stays
    chained, and ``run.max_bad_share`` ends a run in which it is met often.

    Args:
        complaint: what is said of the file; the decoder's own words follow in brackets.

    Raises:
        MediaError: naming the file and the reason.
    """

    __slots__ = ("complaint", "source")

    def __init__(self, source: Source, complaint: str = "cannot be read"):
        self.source, self.complaint = source, complaint

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, MissingMedia):
            return
        name = name_of(self.source)
        if _is_lfs_pointer(self.source):
            raise MediaError(name, LFS_REASON) from error
        if isinstance(error, DocumentError):
            raise MediaError(name, error.reason) from error
        if not isinstance(error, MediaError):
            raise MediaError(name, f"{self.complaint} ({reason_of(error)})") from error


def reason_of(error: Exception) -> str:
    """What an error says, for the brackets of a message: its first line, with its class where the line says little."""
    if isinstance(error, MemoryError):
        return "more memory would be needed than there is"
    # Decoders put addresses, paths or pages of native backtrace into their messages.
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    text = text.strip().split("\n")[0].split("Check failed: ")[-1]
    if isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError | RecursionError | AssertionError):
        text = f"{type(error).__name__}: {text}"
    return text[:LONGEST_REASON] or type(error).__name__


def _is_lfs_pointer(source: Source) -> bool:
    if isinstance(source, Blob):
        return source.data.startswith(LFS_START)
    with suppress(OSError, ValueError), open_regular(source) as file:  # ValueError: not a regular file, too
        return file.read(len(LFS_START)) == LFS_START
    return False


def build_processors(configs: Mapping[str, Any], where: str) -> dict[str, Processor]:
    """Modality -> its processor, from typed configurations; `where` is the key that they stand under.

    Raises:
        ValueError: naming the key of one that cannot be made, or is no processor of media.
    """
    built = {}
    for modality, config in configs.items():
        try:
            built[modality] = PROCESSORS.build(config)
        except ValueError as error:
            raise ValueError(f"{where}.{modality}: {error}") from error
        if not isinstance(built[modality], Processor):
            name = PROCESSORS.name_of(config)
            raise ValueError(f"{where}.{modality}: '{name}' reads text, not media files; name a media processor")
    return built
