"""Media as a report shows them: a few frames of a picture or video, the waveform of a sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from chatbridge.common.documents import open_regular


def frames_of(path: Path, count: int = 4) -> np.ndarray:
    """A picture as one frame, a video as `count` frames spread over it: uint8 [F, H, W, 3].

    Raises:
        ValueError: a file that cannot be read or holds no picture.
    """
    with _opened(path, "shown in") as container:
        total = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    places = {int((place + 0.5) * total / min(count, total)) for place in range(min(count, total))}
    with _opened(path, "shown in") as container:
        decoded = enumerate(container.decode(container.streams.video[0]))
        frames = [frame.to_ndarray(format="rgb24") for number, frame in decoded if number in places]
    if not frames:
        raise ValueError(f"{path}: cannot be shown in the report (it holds no frames)")
    return np.stack(frames)


def sound_of(path: Path) -> tuple[np.ndarray, int]:
    """The sound of an audio file or of a video's sound track: float32 [samples] (channels averaged), and its rate, Hz.

    Raises:
        ValueError: a file that cannot be read or holds no sound.
    """
    resampler = av.AudioResampler(format="fltp", layout="mono")
    with _opened(path, "heard for") as container:
        track = next(track for track in container.streams.audio if track.codec_context is not None)
        rate = track.codec_context.sample_rate
        pieces = [p.to_ndarray()[0] for frame in container.decode(track) for p in resampler.resample(frame)]
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), rate


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Any]:
    """A media file, whatever goes wrong with which is a ValueError."""
    try:
        with open_regular(path) as file, av.open(file, metadata_errors="replace") as container:
            yield container
    except Exception as error:  # decoders raise anything
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise ValueError(f"{path}: cannot be {what} the report ({reason})") from error
