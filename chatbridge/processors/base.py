"""What every media processor is: a file on disk (or its bytes) in, a tensor of frames or clips out.

A processor of one's own needs nothing more than the members of `MediaProcessor`; it is registered with
``@PROCESSORS.register("name", config=ItsConfig)`` and then named in a YAML.
"""

from __future__ import annotations

import io
import os
import random
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from chatbridge.common.raw import RawMedia


class MediaError(ValueError):
    """A medium that cannot be used: it names the file and says why.

    Attributes:
        source: the file (or archive member) as it was asked for.
        reason: what is wrong with it, and where it helps, what to do.
    """

    def __init__(self, source: str, reason: str):
        self.source = source
        self.reason = reason
        super().__init__(f"{source}: {reason}")

    def __reduce__(self) -> tuple:
        # An exception made from one joined message could not travel back from a data-loader worker.
        return type(self), (self.source, self.reason)


class MissingMedia(MediaError):
    """There is no such file."""


@dataclass(frozen=True)
class Blob:
    """A medium held in memory, such as one member of a webdataset shard; the name's ending tells its kind."""

    name: str
    data: bytes


Source = str | Path | Blob
"""Where a medium comes from: a path, or bytes with a name."""


@runtime_checkable
class MediaProcessor(Protocol):
    """One modality's way from a file to a tensor [T, ...].

    Attributes:
        modality: the name it goes by when a configuration gives no other.
        extensions: file name endings (lower case, with dot) that are tried when a reference has none.
        shape: shape of every tensor that `load` and `blank` return (of raw media, when they are finished), T first.
    """

    modality: str
    extensions: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]: ...

    def load(self, source: Source, rng: random.Random | None = None) -> Tensor | RawMedia:
        """The medium as float32 [T, ...]; in training a processor may leave the last of it to the model's device.

        Args:
            source: the file, or its bytes.
            rng: given, the training rules with their random choices; None, the evaluation rules, which have none
                and always give a tensor.

        Raises:
            MediaError: when the file is missing, unreadable, truncated or empty of this modality.
        """
        ...

    def blank(self) -> Tensor:
        """A medium with nothing in it (a black picture, silence), put through the same pipeline: for ablations."""
        ...


def name_of(source: Source) -> str:
    """The name that messages use."""
    return source.name if isinstance(source, Blob) else str(source)


def suffix_of(source: Source) -> str:
    """The lower-case ending of the name, with its dot."""
    return Path(name_of(source)).suffix.lower()


def readable(source: Source) -> str | io.BytesIO:
    """What a decoder opens: the path as text, or a fresh stream over the bytes.

    Raises:
        MediaError: when there is no such file, it is a folder, or it has no bytes.
    """
    if isinstance(source, Blob):
        if not source.data:
            raise MediaError(source.name, "is empty (0 bytes)")
        return io.BytesIO(source.data)
    try:
        found = os.stat(source)
    except FileNotFoundError:
        raise MissingMedia(str(source), "does not exist") from None
    except (OSError, ValueError) as error:  # no permission, name too long, NUL in the name
        raise MediaError(str(source), f"cannot be opened ({error})") from error
    if stat.S_ISDIR(found.st_mode):
        raise MediaError(str(source), "is a folder, a file was expected")
    if found.st_size == 0:
        raise MediaError(str(source), "is empty (0 bytes)")
    return str(source)
