"""Waveforms from files, at the rate they were recorded at.

Audio files are read by soundfile, sound tracks of videos (and what soundfile does not know) by PyAV. torchaudio's
own loader needs torchcodec, and decord's audio reader resamples with another filter than the published numbers.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from chatbridge.processors.base import MediaError, Source, name_of, readable, suffix_of
from chatbridge.processors.containers import check_whole, open_container
from chatbridge.processors.time_limit import READ_SECONDS, within

SOUNDFILE_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au", ".caf")


def read_sound(
    source: Source, max_seconds: float, sixteen_bit: bool = False, read_seconds: float = READ_SECONDS
) -> tuple[Tensor, int]:
    """A sound as float32 [channels, samples] in [-1, 1), and its rate in Hz.

    Args:
        sixteen_bit: give what is stored in 16 bits as int16: of a WAV, that takes a quarter of the time.
        read_seconds: that PyAV may take.

    Raises:
        MediaError: missing, empty, truncated or unreadable file, no sound track, longer than `max_seconds`, not
            decoded in time.
    """
    check_whole(source)
    first = partial(_with_soundfile, sixteen_bit=sixteen_bit)
    second = partial(within, read_seconds, name_of(source), _with_av)
    if suffix_of(source) not in SOUNDFILE_EXTENSIONS:
        first, second = second, first
    try:
        return first(source, max_seconds)
    except MediaError:
        raise
    except Exception as error:
        reason = error
    try:
        return second(source, max_seconds)
    except MediaError:
        raise
    except Exception:
        # The first decoder is the one meant for this kind of file: its complaint is the one worth reading.
        text = str(reason).strip().split("\n")[0] or type(reason).__name__
        raise MediaError(name_of(source), f"is not a readable sound or video ({text})") from reason


def _with_soundfile(source: Source, max_seconds: float, sixteen_bit: bool) -> tuple[Tensor, int]:
    import soundfile

    with soundfile.SoundFile(readable(source)) as file:
        _check_length(source, file.frames / file.samplerate, max_seconds)
        announced, compressed = file.frames, file.format == "MP3"
        samples = file.read(dtype="int16" if sixteen_bit and file.subtype == "PCM_16" else "float32", always_2d=True)
        rate = file.samplerate
    if len(samples) < announced and not compressed:  # an MP3's length may be an estimate
        raise MediaError(name_of(source), f"is truncated: {announced} samples announced, {len(samples)} read")
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate


def _with_av(source: Source, max_seconds: float) -> tuple[Tensor, int]:
    import av

    with open_container(readable(source)) as container:
        if not container.streams.audio:
            raise MediaError(name_of(source), "has no sound track")
        track = container.streams.audio[0]
        rate = track.codec_context.sample_rate
        known = None if track.duration is None else float(track.duration * track.time_base)
        _check_length(source, known or 0.0, max_seconds)
        planar = av.AudioResampler(format="fltp")  # sample format only: rate and channels stay
        parts, total = [], 0
        for frame in container.decode(track):
            parts += [part.to_ndarray() for part in planar.resample(frame)]
            total += frame.samples
            _check_length(source, total / rate, max_seconds)
    samples = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
    if known:
        # Codecs work in blocks and pad the last one; the container states the true length.
        samples = samples[:, : round(known * rate)]
    return torch.from_numpy(np.ascontiguousarray(samples)), rate


def _check_length(source: Source, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise MediaError(name_of(source), f"is {seconds:.0f} s long or longer, max_seconds = {max_seconds:g}")
