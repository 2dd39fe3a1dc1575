"""Waveforms from files, at the rate they were recorded at.

Audio files are read by soundfile, sound tracks of videos (and what soundfile does not know) by PyAV. torchaudio's
own loader needs torchcodec, and decord's audio reader resamples with another filter than the published numbers.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatbridge.processors.base import MediaError, Source, for_decoder, media_errors, name_of, reason_of, suffix_of
from chatbridge.processors.containers import (
    NO_DECODER,
    NO_SOUND,
    check_whole,
    decodable,
    lacks_length,
    open_container,
)
from chatbridge.processors.time_limit import READ_SECONDS, within

SOUNDFILE_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au", ".caf")

MIN_RATE, MAX_RATE = 100, 768_000
"""Hz: from what is below hearing to the fastest converters."""

MAX_CHANNELS = 64

FASTEST_SOUND = 192_000
"""Samples of all channels in a second, at the longest duration: 96 kHz in stereo."""

UNKNOWN_LENGTH = 1 << 62
"""From here up, libsndfile's count of samples says that it does not know."""

UNREADABLE = "is not a readable sound or video"


def read_sound(
    source: Source, max_seconds: float, sixteen_bit: bool = False, read_seconds: float = READ_SECONDS
) -> tuple[Tensor, int]:
    """A sound as float32 [channels, samples] in [-1, 1), and its rate in Hz.

    Of a video, the first track that can be decoded and has something in it.

    Args:
        sixteen_bit: give what is stored in 16 bits as int16: of a WAV, that takes a quarter of the time.
        read_seconds: that it may take.

    Raises:
        MediaError: missing, empty, truncated or unreadable file, no sound track, none that can be decoded, a rate that
            no sound has, too many channels, longer than `max_seconds` (or as many samples as that long would have at
            `FASTEST_SOUND`), not decoded in time.
    """
    with media_errors(source, UNREADABLE):
        if check_whole(source):
            return _read(source, max_seconds, sixteen_bit)
        return within(read_seconds, name_of(source), _read, source, max_seconds, sixteen_bit)


def check_sound(name: str, rate: int, channels: int) -> None:
    """Raise MediaError for a rate that no sound has, or for too many channels: from a damaged header, mostly."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise MediaError(
            name, f"has a sample rate of {rate:,} Hz by its header; sounds have {MIN_RATE} to {MAX_RATE:,}"
        )
    if channels > MAX_CHANNELS:
        raise MediaError(name, f"has {channels} channels, more than {MAX_CHANNELS}")


def _read(source: Source, max_seconds: float, sixteen_bit: bool) -> tuple[Tensor, int]:
    first, second = partial(_with_soundfile, sixteen_bit=sixteen_bit), _with_av
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
        raise MediaError(name_of(source), f"{UNREADABLE} ({reason_of(reason)})") from reason


def _with_soundfile(source: Source, max_seconds: float, sixteen_bit: bool) -> tuple[Tensor, int]:
    import soundfile

    with soundfile.SoundFile(for_decoder(source)) as file:
        rate, announced, compressed = file.samplerate, file.frames, file.format == "MP3"
        if announced >= UNKNOWN_LENGTH or (announced == 0 and lacks_length(source)):
            raise ValueError("its header does not say how long it is")  # the other decoder reads it to its end
        check_sound(name_of(source), rate, file.channels)
        _check_length(source, announced, rate, file.channels, max_seconds)
        samples = file.read(dtype="int16" if sixteen_bit and file.subtype == "PCM_16" else "float32", always_2d=True)
    if len(samples) < announced and not compressed:  # an MP3's length may be an estimate
        raise MediaError(name_of(source), f"is truncated: {announced} samples announced, {len(samples)} read")
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate


def _with_av(source: Source, max_seconds: float) -> tuple[Tensor, int]:
    from av.error import FFmpegError

    for number in count():
        with open_container(for_decoder(source)) as container:
            tracks = decodable(container.streams.audio)
            if not tracks:
                problem = NO_DECODER.format("sound") if container.streams.audio else NO_SOUND
                raise MediaError(name_of(source), problem)
            last = number == len(tracks) - 1
            try:
                samples, rate = _track(source, container, tracks[number], max_seconds)
            except FFmpegError:
                if last:
                    raise
                continue
        if samples.shape[1] or last:
            return torch.from_numpy(np.ascontiguousarray(samples)), rate
    raise AssertionError("there is a last track")


def _track(source: Source, container: Any, track: Any, max_seconds: float) -> tuple[np.ndarray, int]:
    """One sound track as float32 [channels, samples], and its rate in Hz."""
    import av

    rate, channels = track.codec_context.sample_rate, track.codec_context.channels
    check_sound(name_of(source), rate, channels)
    known = None if track.duration is None else float(track.duration * track.time_base)
    _check_length(source, (known or 0.0) * rate, rate, channels, max_seconds)
    # Sample format only: rate and channels stay. Side by side: PyAV crashes at eight channels behind one another.
    packed = av.AudioResampler(format="flt")
    parts, total = [], 0
    for frame in container.decode(track):
        channels = frame.layout.nb_channels
        parts += [part.to_ndarray()[0].reshape(-1, channels) for part in packed.resample(frame)]
        total += frame.samples
        _check_length(source, total, rate, channels, max_seconds)
    samples = np.concatenate(parts).T if parts else np.zeros((1, 0), np.float32)
    if known:
        # Codecs work in blocks and pad the last one; the container states the true length.
        samples = samples[:, : round(known * rate)]
    return samples, rate


def _check_length(source: Source, samples: float, rate: int, channels: int, max_seconds: float) -> None:
    seconds, most = samples / rate, max_seconds * FASTEST_SOUND
    if seconds > max_seconds:
        raise MediaError(name_of(source), f"is {seconds:.0f} s long or longer, max_seconds = {max_seconds:g}")
    if samples * channels > most:
        allowed = f"max_seconds = {max_seconds:g} allows {most:,.0f}"
        raise MediaError(name_of(source), f"has {samples * channels:,.0f} samples in its channels, {allowed}")
