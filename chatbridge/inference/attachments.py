"""Media of a conversation: files or bytes, identified by their content and not by their names."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError

from chatbridge.common.documents import open_regular
from chatbridge.processors.base import Blob, MediaError, Source, is_folder, media_errors, name_of, readable
from chatbridge.processors.containers import NO_SOUND, open_container, pictures, sound_problem
from chatbridge.processors.time_limit import within

LOOK_SECONDS = 30.0
"""Time limit for examining a file: headers, packet times, the beginning of its sound."""

_BLOCK = 2**20

MODALITY_WORDS = {"image": "a picture", "video": "a video", "audio": "a sound"}

MediaSource = Source | bytes | Image.Image
"""A file or folder, bytes, or a picture in memory."""


@dataclass(slots=True)
class Medium:
    """One picture, video or sound of a conversation.

    Attributes:
        modality: the name of a bridge's modality.
        source: the file (or folder of frames), or its bytes.
        digest: SHA-256 of the content, in hexadecimal.
        muted: the model is shown an empty medium (black, silent) in its place.
        stamp: size and time of the file when it was read for the digest; None for bytes.
        remark: a note on how it is shown, such as without its sound.
    """

    modality: str
    source: Source
    digest: str
    muted: bool = False
    stamp: tuple[int, int] | None = None
    remark: str = ""

    @classmethod
    def of(cls, modality: str, source: MediaSource) -> Medium:
        """The medium in a file, in bytes, or a picture in memory.

        Raises:
            MediaError: when there is no such file or it is empty.
        """
        source = as_source(source)
        with media_errors(source):
            return cls(modality, source, digest_of(source), stamp=_stamp(source))

    def check_unchanged(self) -> None:
        """Raise MediaError when the file is not the one that was attached."""
        if _stamp(self.source) != self.stamp:
            raise MediaError(self.name, "has changed since it was attached; attach it again")

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(name_of(self.source)).name

    @property
    def identity(self) -> str:
        """Equal for media whose rows are equal, given the same processor."""
        return f"{self.modality}:{'blank' if self.muted else self.digest}"


def as_source(shown: MediaSource) -> Source:
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
    if is_folder(source):
        files = [file for file in sorted(Path(source).iterdir()) if file.is_file()]
        if not files:
            raise MediaError(str(source), "is a folder without files")
        listed = "".join(f"{file.name}\0{digest_of(file)}" for file in files)
        return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()
    opened = readable(source)
    digest = hashlib.sha256()
    with open_regular(opened) if isinstance(opened, str) else opened as stream:
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
        known: the modalities that are allowed.

    Raises:
        MediaError: when it is none of them.
    """
    with media_errors(source):
        found = within(LOOK_SECONDS, name_of(source), _content, source)
        if found is None:
            raise MediaError(name_of(source), "holds no picture, video or sound that can be read; say what it is")
    if found not in known:
        raise MediaError(name_of(source), f"is {MODALITY_WORDS[found]}; this model knows {', '.join(sorted(known))}")
    return found


def _content(source: Source) -> str | None:
    if is_folder(source):
        return "video"  # a folder of frames
    try:
        with Image.open(readable(source)):
            return "image"
    except UnidentifiedImageError:
        pass
    except MediaError:
        raise
    except Exception:  # a damaged picture; its processor reports the damage
        return "image"
    try:
        with open_container(readable(source)) as container:
            if pictures(container):
                return "video"
            return "audio" if container.streams.audio else None
    except av.FFmpegError:
        return None


def video_sound_problem(source: Source) -> str | None:
    """Why a video has no sound that can be decoded, for a message; None if it has one.

    Raises:
        MediaError: when there is no such file or it is empty.
    """
    if is_folder(source):
        return NO_SOUND
    readable(source)
    try:
        with media_errors(source):
            return within(LOOK_SECONDS, name_of(source), sound_problem, source)
    except MediaError as error:
        return error.reason
