"""Media as a report shows them: a few frames of a picture or video, the waveform of a sound."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def frames_of(path: Path, count: int = 4) -> np.ndarray:
    """A picture as one frame, a video as `count` frames spread over it: uint8 [F, H, W, 3].

    Raises:
        ValueError: a file that cannot be read or holds no picture.
    """
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{path}: cannot be shown in the report ({error})") from error
    if not frames:
        raise ValueError(f"{path}: cannot be shown in the report (it holds no frames)")
    places = (np.arange(min(count, len(frames))) + 0.5) * len(frames) / min(count, len(frames))
    return np.stack([frames[int(place)] for place in places])


def sound_of(path: Path) -> tuple[np.ndarray, int]:
    """The sound of an audio file or of a video's sound track: float32 [samples] (channels averaged), and its rate, Hz.

    Raises:
        ValueError: a file that cannot be read or holds no sound.
    """
    resampler = av.AudioResampler(format="fltp", layout="mono")
    try:
        with av.open(str(path)) as container:
            rate = container.streams.audio[0].rate
            pieces = [p.to_ndarray()[0] for frame in container.decode(audio=0) for p in resampler.resample(frame)]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{path}: cannot be heard for the report ({error})") from error
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), rate
