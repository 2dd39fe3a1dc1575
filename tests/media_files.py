"""Small media files for tests, written by the tests themselves."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile


def tone(seconds: float = 1.0, rate: int = 16000, pitch: float = 440.0) -> np.ndarray:
    """A sine of amplitude 0.3: float32 [samples]."""
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def write_video(
    path: Path,
    reds: list[int],
    size: tuple[int, int] = (56, 56),
    sound: np.ndarray | None = None,
    rate: int = 16000,
    codecs: tuple[str, str] = ("libx264", "aac"),
    index_first: bool = False,
    left_green: bool = False,
) -> Path:
    """A video of one flat colour (red of the given strength) per frame, [height, width] of `size`.

    With `left_green`, the left half of every frame is green instead.
    """
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(path), "w", options=options) as container:
        pictures = container.add_stream(codecs[0], rate=5)
        pictures.height, pictures.width = size
        pictures.pix_fmt = "yuv420p"
        track = None
        if sound is not None:
            track = container.add_stream(codecs[1], rate=rate)
            track.layout = "mono"
        for red in reds:
            frame = np.zeros((*size, 3), np.uint8)
            frame[..., 0] = red
            if left_green:
                frame[:, : size[1] // 2] = (0, 255, 0)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(pictures.encode(None))
        if track is not None:
            frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, 0
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


def tracks(path: Path, sounds: list[np.ndarray | None], codec: str = "aac", **options) -> Path:
    """A video with these sound tracks; None for one of which there is nothing but its announcement."""
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=8)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        heard = [container.add_stream(codec, rate=48000) for _ in sounds]
        for track in heard:
            track.layout = "mono"
        for _ in range(8):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(video.encode(None))
        for track, samples in zip(heard, sounds, strict=True):
            if samples is not None:
                frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
                frame.rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
                container.mux(track.encode(frame))
                container.mux(track.encode(None))
    return path


def without_decoder(path: Path, which: int) -> Path:
    """A sound track of an MP4 becomes one in a codec that nobody has, such as Apple's positional audio."""
    data, at = bytearray(path.read_bytes()), 0
    for _ in range(which + 1):
        at = data.index(b"mp4a", at + 1)
    data[at : at + 4] = b"apac"
    descriptor = data.index(b"esds", at)
    data[descriptor : descriptor + 4] = b"dapa"
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """The file's first part, beside it, as an interrupted download leaves it."""
    data = path.read_bytes()
    short = path.with_name("cut_" + path.name)
    short.write_bytes(data[: int(len(data) * share)])
    return short
