"""Previews of media for the chat: a thumbnail, a file that browsers play, a spectrogram."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from av.error import FFmpegError
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from chatbridge.inference import Medium
from chatbridge.inference.limits import MediaLimits
from chatbridge.processors.base import Blob, Source, media_errors, readable
from chatbridge.processors.containers import decodable, open_container, pictures
from chatbridge.processors.picture_files import read_rgb
from chatbridge.processors.sound_files import read_sound
from chatbridge.processors.video_files import read_frames

LONGEST_SIDE = 720
"""Pixels of a picture in the chat."""

PLAYED_VIDEOS = {"mp4": ("h264", "av1", "vp9"), "webm": ("vp8", "vp9", "av1")}
PLAYED_SOUNDS = {"wav": "wav", "mp3": "mp3", "flac": "flac", "ogg": "ogg"}
"""What browsers play: a file's ending by FFmpeg's name of its format."""

SPECTROGRAM = "spectrogram"
"""The stem of such a picture's file."""

COLUMNS, ROWS = 600, 200
HIGHEST, LOWEST_DB = 8000.0, -80.0
"""Hz at the top of a spectrogram, and dB that are black in it."""


@dataclass(frozen=True)
class Preview:
    """A medium in the chat.

    Attributes:
        files: shown in this order, each by its ending. label, detail: its caption.
    """

    files: tuple[Path, ...]
    label: str
    detail: str = ""


def preview(medium: Medium, folder: Path, limits: MediaLimits, with_video: bool = False) -> Preview:
    """Write the preview of a medium into a folder.

    Args:
        with_video: the sound is played with its video; only a spectrogram is made.

    Raises:
        MediaError: when it cannot be decoded.
    """
    with media_errors(medium.source, "cannot be shown"):
        folder.mkdir(parents=True, exist_ok=True)
        return _preview(medium, folder, limits, with_video)


def _preview(medium: Medium, folder: Path, limits: MediaLimits, with_video: bool) -> Preview:
    if medium.modality == "image":
        return Preview((_picture(medium, folder, limits),), medium.name)
    if medium.modality == "video":
        return Preview((_video(medium, folder, limits),), medium.name)
    if medium.modality == "audio":
        samples, rate = read_sound(medium.source, limits.max_seconds)
        drawn = folder / f"{SPECTROGRAM}.png"
        caption = spectrogram(samples, rate, drawn)
        if with_video:
            return Preview((drawn,), f"sound of {medium.name}", caption)
        return Preview((_sound(medium.source, samples, rate, folder), drawn), medium.name, caption)
    return Preview((), medium.name)  # a plugin's modality


def spectrogram(samples_CN: Tensor, rate: int, file: Path) -> str:
    """Draw the power of a sound, over time to the right and frequency upwards, in dB below its loudest point.

    Args:
        samples_CN: channels and samples, float32 in [-1, 1). rate: in Hz. file: the picture.

    Returns:
        a caption: duration and frequency range.
    """
    wave = samples_CN.float().mean(0).numpy()
    width = 1 << max(6, int(rate / 32).bit_length())
    highest = min(HIGHEST, rate / 2)
    wave = np.pad(wave, (width // 2, width))  # short sounds have a column, too
    starts = np.linspace(0, len(wave) - width, COLUMNS).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(wave, width)[starts] * np.hanning(width)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    heard = power[:, : max(2, round(highest / rate * width))]
    decibels = 10 * np.log10(np.maximum(heard, 1e-12) / max(float(heard.max()), 1e-6))
    colours = colormaps["magma"](1 - decibels.T[::-1] / LOWEST_DB, bytes=True)[..., :3]
    Image.fromarray(np.ascontiguousarray(colours)).resize((COLUMNS, ROWS), Image.Resampling.BILINEAR).save(file)
    return f"{samples_CN.shape[1] / rate:.1f} s, up to {highest / 1000:g} kHz"


def _picture(medium: Medium, folder: Path, limits: MediaLimits) -> Path:
    pixels = read_rgb(medium.source, limits.max_pixels, side=LONGEST_SIDE)
    return _save(Image.fromarray(pixels), folder / "picture")


def _video(medium: Medium, folder: Path, limits: MediaLimits) -> Path:
    ending = _played_video(medium.source)
    if ending is not None:
        return _as_file(medium.source, folder / f"video.{ending}")
    # Browsers would show a black box: show four frames instead.
    frames = read_frames(medium.source, lambda count: [count * (2 * i + 1) // 8 for i in range(4)], limits.max_pixels)
    return _save(Image.fromarray(np.concatenate(frames, axis=1)), folder / "frames")


def _sound(source: Source, samples: Tensor, rate: int, folder: Path) -> Path:
    ending = _played_sound(source)
    if ending is not None:
        return _as_file(source, folder / f"sound.{ending}")
    file = folder / "sound.wav"
    soundfile.write(file, samples.float().mean(0).numpy(), rate, subtype="PCM_16")
    return file


def _played_video(source: Source) -> str | None:
    with open_container(readable(source)) as container:
        context = decodable(pictures(container))[0].codec_context
        codec = {"libdav1d": "av1", "libvpx-vp9": "vp9"}.get(context.name, context.name)
        for ending, codecs in PLAYED_VIDEOS.items():
            plain = context.pix_fmt in ("yuv420p", "yuvj420p")
            if plain and ending in container.format.name.split(",") and codec in codecs:
                return ending
    return None


def _played_sound(source: Source) -> str | None:
    try:
        with open_container(readable(source)) as container:
            if container.streams.video:  # a video whose sound alone is heard
                return None
            return PLAYED_SOUNDS.get(container.format.name)
    except FFmpegError:
        return None


def _as_file(source: Source, file: Path) -> Path:
    """The medium under a name whose ending says what it is; without taking space twice where it is a file."""
    if isinstance(source, Blob):
        file.write_bytes(source.data)
    elif not file.exists():
        try:
            os.link(source, file)
        except OSError:  # not every file system has links
            shutil.copy(source, file)
    return file


def _save(picture: Image.Image, file: Path) -> Path:
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    small = picture.width * picture.height <= 256 * 256
    file = file.with_suffix(".png" if small else ".jpg")
    picture.save(file, quality=90)
    return file
