"""Limits on media from clients, checked before anything is decoded whole.

Only headers and the sizes and times of packets are examined. Only self-contained formats are accepted, identified by
content: FFmpeg's playlists (``ffconcat``, HLS) name other files, and Pillow starts Ghostscript for EPS.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import soundfile
from av.container import InputContainer
from av.stream import Stream
from PIL import Image, UnidentifiedImageError

from chatbridge.inference.attachments import LOOK_SECONDS, MODALITY_WORDS, MediaSource, as_source
from chatbridge.processors.base import Blob, MediaError, Source, media_errors, name_of, readable, reason_of
from chatbridge.processors.containers import (
    NO_DECODER,
    check_whole,
    decodable,
    open_container,
    pictures,
    sound_problem,
)
from chatbridge.processors.picture_files import MAX_SIDE, scans_problem
from chatbridge.processors.sound_files import FASTEST_SOUND, check_sound
from chatbridge.processors.time_limit import within

PICTURES = ("BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")
"""Pillow's names of the formats that are accepted."""

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,mpegvideo,asf,ogg,"
    "wav,w64,flac,mp3,aac,ac3,eac3,aiff,au,caf,amr,wv"
)
"""FFmpeg's names of the same."""

MIB = 2**20


class LimitExceeded(MediaError):
    """A medium, or media together, that are larger than allowed; the message says how large, and the limit."""


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What is in a file.

    Attributes:
        kind: "image", "video" or "audio".
        pixels: of the picture, or of one frame. seconds: how long it lasts; 0 for pictures.
        sound: whether something can be heard.
    """

    kind: str
    pixels: int = 0
    seconds: float = 0.0
    sound: bool = False


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Bounds on media. (A sound in a container that lies about its times ends at ``processors.audio.max_seconds``.)

    Attributes:
        max_bytes: of one file. max_count: media of one conversation or question. max_seconds: of a video or sound.
        max_pixels: of a picture or frame.

    Raises:
        ValueError: for a limit of 0 or less.
    """

    max_bytes: int = 64 * MIB
    max_count: int = 16
    max_seconds: float = 600.0
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_count", "max_seconds", "max_pixels"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; take a value above 0")

    def check_count(self, count: int) -> None:
        """Raise LimitExceeded when so many media are too many."""
        if count > self.max_count:
            raise LimitExceeded(f"{count} media", f"are more than the {self.max_count} that may be shown; show fewer")

    def check_bytes(self, name: str, size: int) -> None:
        """Raise LimitExceeded when a file of so many bytes is too large."""
        if size > self.max_bytes:
            raise LimitExceeded(name, f"has {_mib(size)}, more than the {_mib(self.max_bytes)} allowed; send less")

    def check(self, shown: MediaSource, modality: str | None = None) -> MediaInfo:
        """Examine the size and header of a file (or bytes).

        Args:
            modality: what it is to be shown as: "image", "video" or "audio" (a video's sound, too); None for any.
                Of another modality, such as a plugin's, only the size is checked.

        Raises:
            LimitExceeded: too many bytes, pixels or seconds.
            MediaError: missing, empty, of no accepted format, or not of that modality.
        """
        source = as_source(shown)
        name = name_of(source) if isinstance(source, Blob) else Path(source).name
        try:
            with media_errors(source):
                found = within(LOOK_SECONDS, name, self._look, source, name, modality)
        except MediaError as error:  # without the folder, which clients must not see
            raise type(error)(name, error.reason) from error
        if modality not in (None, found.kind) and not (modality == "audio" and found.sound):
            silent = (found.kind, modality) == ("video", "audio")
            problem = "has no sound" if silent else f"not {MODALITY_WORDS[modality]}"
            raise MediaError(name, f"is {MODALITY_WORDS[found.kind]} and {problem}")
        return found

    def _look(self, source: Source, name: str, modality: str | None) -> MediaInfo:
        readable(source)
        self.check_bytes(name, len(source.data) if isinstance(source, Blob) else Path(source).stat().st_size)
        if modality not in (None, "image", "video", "audio"):
            return MediaInfo(kind=modality)
        found = self._picture(source, name) or self._track(source, name) or self._sound(source, name)
        if found is None:
            check_whole(source)  # a truncated file may have lost its signature
            raise MediaError(name, "holds no picture, video or sound in a format that is accepted here")
        return found

    def _picture(self, source: Source, name: str) -> MediaInfo | None:
        try:
            with Image.open(readable(source), formats=PICTURES) as picture:
                (width, height), kind = picture.size, picture.format
        except UnidentifiedImageError:
            return None
        except Image.DecompressionBombError as error:
            raise LimitExceeded(name, f"is far larger than {_megapixels(self.max_pixels)}; shrink it") from error
        except Exception as error:  # damaged pictures make Pillow raise almost anything
            raise MediaError(name, f"is a damaged picture ({reason_of(error)})") from error
        self._check_pixels(name, width, height)
        if kind in ("JPEG", "MPO"):
            data = source.data if isinstance(source, Blob) else Path(source).read_bytes()
            problem = scans_problem(data, width * height)
            if problem:
                raise LimitExceeded(name, f"{problem}; save it anew")
        return MediaInfo(kind="image", pixels=width * height)

    def _track(self, source: Source, name: str) -> MediaInfo | None:
        """What FFmpeg finds in a video or sound."""
        try:
            with open_container(readable(source), headers_only=True, formats=CONTAINERS) as container:
                self._frame_sizes(container, name)  # before the first frames are decoded to see what they are
            with open_container(readable(source), formats=CONTAINERS) as container:
                films, sounds = pictures(container), container.streams.audio
                if not films and not sounds:
                    return None
                sizes = self._frame_sizes(container, name)
                heard = [track.codec_context for track in decodable(sounds)]
                if not sizes and (films or not heard):
                    raise MediaError(name, NO_DECODER.format("picture" if films else "sound"))
                seconds = self._duration(container, name)
                for codec in heard:
                    check_sound(name, codec.sample_rate, codec.channels)
                    self._check_samples(name, seconds * codec.sample_rate * codec.channels)
        except av.FFmpegError:
            return None
        if not sizes:
            return MediaInfo(kind="audio", seconds=seconds, sound=True)
        return MediaInfo(kind="video", pixels=max(sizes), seconds=seconds, sound=sound_problem(source) is None)

    def _frame_sizes(self, container: InputContainer, name: str) -> list[int]:
        """Pixels of a frame of each track of moving pictures that can be decoded."""
        codecs = [track.codec_context for track in decodable(pictures(container))]
        for codec in codecs:
            self._check_pixels(name, codec.width, codec.height)
        return [codec.width * codec.height for codec in codecs]

    def _duration(self, container: InputContainer, name: str) -> float:
        """The longest that header and packets say, in seconds."""
        tracks = [*container.streams.video, *container.streams.audio]
        stated = [float(t.duration * t.time_base) for t in tracks if t.duration]
        seconds = max([*stated, (container.duration or 0) / av.time_base])
        self._check_seconds(name, seconds)
        first: dict[int, float] = {}
        for packet in _packets(container, tracks):
            if packet.pts is None:
                continue
            at = float(packet.pts * packet.time_base)  # durations of packets are guesses where frames are reordered
            seconds = max(seconds, at - first.setdefault(packet.stream_index, at))
            self._check_seconds(name, seconds)
        return seconds

    def _sound(self, source: Source, name: str) -> MediaInfo | None:
        """What soundfile finds in a sound that FFmpeg does not know."""
        try:
            found = soundfile.info(readable(source))
        except (soundfile.SoundFileError, RuntimeError, TypeError):
            return None
        check_sound(name, found.samplerate, found.channels)
        seconds = found.frames / found.samplerate
        self._check_seconds(name, seconds)
        self._check_samples(name, found.frames * found.channels)
        return MediaInfo(kind="audio", seconds=seconds, sound=True)

    def _check_seconds(self, name: str, seconds: float) -> None:
        if seconds > self.max_seconds:
            raise LimitExceeded(
                name, f"lasts {_time(seconds)} or longer, {_time(self.max_seconds)} are allowed; send a part of it"
            )

    def _check_samples(self, name: str, samples: float) -> None:
        most = self.max_seconds * FASTEST_SOUND
        if samples > most:
            raise LimitExceeded(
                name, f"has {samples:,.0f} samples in its channels, {most:,.0f} are allowed; resample it"
            )

    def _check_pixels(self, name: str, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            size = f"{width} x {height}, that is {_megapixels(width * height)}"
            raise LimitExceeded(name, f"is {size}; {_megapixels(self.max_pixels)} are allowed; shrink it")
        if max(width, height) > MAX_SIDE:
            raise LimitExceeded(name, f"is {width} x {height}; a side of {MAX_SIDE:,} pixels is allowed; shrink it")


def add_arguments(parser: ArgumentParser) -> None:
    """Options that set the limits of a command; `from_arguments` reads them."""
    usual = MediaLimits()
    group = parser.add_argument_group("limits on media")
    group.add_argument("--max-upload-mb", type=float, default=usual.max_bytes / MIB, help="of one file, in MiB")
    group.add_argument("--max-media", type=int, default=usual.max_count, help="media in one conversation")
    group.add_argument("--max-seconds", type=float, default=usual.max_seconds, help="of a video or sound")
    group.add_argument("--max-megapixels", type=float, default=usual.max_pixels / 1e6, help="of a picture or frame")


def from_arguments(args: Namespace) -> MediaLimits:
    """The limits that a command line asks for.

    Raises:
        ValueError: for a limit of 0 or less.
    """
    return MediaLimits(
        max_bytes=round(args.max_upload_mb * MIB),
        max_count=args.max_media,
        max_seconds=args.max_seconds,
        max_pixels=round(args.max_megapixels * 1e6),
    )


def _packets(container: InputContainer, tracks: list[Stream]) -> Iterator[av.Packet]:
    """Packets up to the first that is damaged: what becomes of such a file is for its decoder to say."""
    with suppress(av.FFmpegError):
        yield from container.demux(tracks)


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB" if size >= MIB / 10 else f"{size:,} bytes"


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:,.1f} megapixels" if pixels >= 1e5 else f"{pixels:,} pixels"


def _time(seconds: float) -> str:
    """Such as 4:00:00 h or 12.5 s."""
    if seconds < 120:
        return f"{seconds:g} s" if seconds == round(seconds) else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h" if minutes >= 60 else f"{minutes}:{rest:02} min"
