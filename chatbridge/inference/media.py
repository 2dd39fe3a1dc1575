"""What is shown in a conversation: files or bytes, known by their content, whatever they are called."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from av.stream import Disposition
from PIL import Image, UnidentifiedImageError

from chatbridge.processors.base import Blob, MediaError, Source, name_of, readable
from chatbridge.processors.containers import open_container

_BLOCK = 2**20

Shown = Source | bytes | Image.Image
"""A file or folder, bytes, or a picture in memory."""


@dataclass(slots=True)
class Medium:
    """One picture, video or sound of a conversation.

    Attributes:
        modality: the name of a bridge's modality.
        source: the file (or folder of frames), or its bytes.
        digest: SHA-256 of the content, in hexadecimal.
        muted: show an empty medium (black, silent) in its place, so that an answer can be had without it.
        stamp: size and time of the file when it was read for the digest; None for bytes.
    """

    modality: str
    source: Source
    digest: str
    muted: bool = False
    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, modality: str, source: Shown) -> Medium:
        """The medium in a file, in bytes, or a picture in memory.

        Raises:
            MediaError: when there is no such file or it is empty.
        """
        source = as_source(source)
        return cls(modality, source, digest_of(source), stamp=_stamp(source))

    def check_unchanged(self) -> None:
        """Raise MediaError when the file is not the one that was attached."""
        if _stamp(self.source) != self.stamp:
            raise MediaError(self.name, "has changed since it was attached; attach it again")

    @property
    def name(self) -> str:
        """For messages and lists: the file's name without its folder."""
        return Path(name_of(self.source)).name

    @property
    def identity(self) -> str:
        """What the model is shown, apart from the processor's settings: equal where its rows are equal."""
        return f"{self.modality}:{'blank' if self.muted else self.digest}"


def as_source(shown: Shown) -> Source:
    """What processors read: a whole path, or bytes with a name."""
    if isinstance(shown, Image.Image):
        data = io.BytesIO()
        shown.save(data, "PNG")
        return Blob("picture.png", data.getvalue())
    if isinstance(shown, bytes):
        return Blob(f"{len(shown):,} bytes", shown)
    return shown if isinstance(shown, Blob) else Path(shown).expanduser().absolute()


def digest_of(source: Source) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of a folder's files."""
    if not isinstance(source, Blob) and Path(source).is_dir():
        files = [file for file in sorted(Path(source).iterdir()) if file.is_file()]
        if not files:
            raise MediaError(str(source), "is a folder without files")
        return hashlib.sha256("".join(f"{file.name}\0{digest_of(file)}" for file in files).encode()).hexdigest()
    opened = readable(source)
    digest = hashlib.sha256()
    with open(opened, "rb") if isinstance(opened, str) else opened as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _stamp(source: Source) -> tuple[int, int] | None:
    if isinstance(source, Blob):
        return None
    try:
        status = Path(source).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def guess_modality(source: Source, known: Sequence[str]) -> str:
    """Whether a file is a picture, a video or a sound, by what is in it and not by its name.

    Args:
        known: the modalities that may be answered.

    Raises:
        MediaError: when it is none of them.
    """
    found = _content(source)
    if found is None:
        raise MediaError(name_of(source), "holds no picture, video or sound that can be read; say what it is")
    if found not in known:
        raise MediaError(name_of(source), f"is {_WORDS[found]}; this model knows {', '.join(sorted(known))}")
    return found


_WORDS = {"image": "a picture", "video": "a video", "audio": "a sound"}


def _content(source: Source) -> str | None:
    if not isinstance(source, Blob) and Path(source).is_dir():
        return "video"  # a folder of frames
    try:
        with Image.open(readable(source)):
            return "image"
    except UnidentifiedImageError:
        pass
    except MediaError:
        raise
    except Exception:  # a damaged picture is one nevertheless: its processor says what is wrong with it
        return "image"
    try:
        with open_container(readable(source)) as container:
            # The cover of a record is a picture track, too.
            pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            return "video" if pictures else "audio" if container.streams.audio else None
    except av.FFmpegError:
        return None


def has_sound(source: Source) -> bool:
    """Whether a video has a sound track. What cannot be read has none; its processor says why.

    Raises:
        MediaError: when there is no such file or it is empty.
    """
    if not isinstance(source, Blob) and Path(source).is_dir():
        return False
    opened = readable(source)
    try:
        with open_container(opened) as container:
            return bool(container.streams.audio)
    except av.FFmpegError:
        return False
