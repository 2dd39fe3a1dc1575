"""Sounds: an audio file, or the sound track of a video -> float32 [clips, frames, mel]."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
import torchaudio
from torch import Tensor
from torchaudio.compliance import kaldi

from chatbridge.common.registry import PROCESSORS
from chatbridge.common.schema import key
from chatbridge.processors.base import MediaError, MissingMedia, Source, name_of
from chatbridge.processors.sampling import pick, split_groups
from chatbridge.processors.sound_files import SOUNDFILE_EXTENSIONS, read_sound
from chatbridge.processors.video import VIDEO_EXTENSIONS

FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
INT16_SCALE = 2.0**15
"""Kaldi works on samples of 16-bit size, files are read as [-1, 1)."""

MAX_PEAK = 1e6
"""Far over full scale; from about 1e12 up, energies overflow."""


@dataclass(kw_only=True)
class AudioConfig:
    """Keys of the audio processor. The defaults are those of the published checkpoints (fact sheet 2.4)."""

    sample_rate: int = key(16000, help="sounds are resampled to this", unit="Hz", low=1000)
    mel_bins: int = key(64, help="mel filters", low=4)
    frames_per_clip: int = key(1024, help="frames of 10 ms that the encoder takes at once", unit="frames", low=1)
    clips: int = key(1, help="clips taken from a sound; a short one is filled up with zeros", unit="clips", low=1)
    mean: float = key(15.41663, help="subtracted from the log mel energies")
    std: float = key(6.55582, help="half of what they are then divided by")
    channel: str = key("first", choices=("first", "mean"), help="what becomes of stereo; published: first")
    max_seconds: float = key(3600.0, help="a longer sound is refused", unit="seconds", low=0.0)
    compat: str = key(
        "default",
        choices=("default", "original"),
        help="original: a length that is a multiple of frames_per_clip gets an empty clip more, a missing file is "
        "all zeros, a sound under 25 ms is None",
    )


@PROCESSORS.register("audio", config=AudioConfig)
class AudioProcessor:
    """Kaldi log mel filter banks in clips: [clips, frames_per_clip, mel_bins].

    The frames are cut in clips of `frames_per_clip`; the clips fall in `clips` groups, of which training takes a
    random and evaluation the middle one. Zero padding comes after normalisation, as in the original.
    """

    modality = "audio"
    extensions = SOUNDFILE_EXTENSIONS + (".m4a", ".aac", ".opus", ".wma") + VIDEO_EXTENSIONS

    def __init__(self, config: AudioConfig):
        if config.std <= 0:
            raise ValueError(f"std must be above 0, got {config.std}")
        self.config = config
        self.window = config.sample_rate * FRAME_LENGTH_MS // 1000
        self.shift = config.sample_rate * FRAME_SHIFT_MS // 1000

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.config.clips, self.config.frames_per_clip, self.config.mel_bins)

    def load(self, source: Source, rng: random.Random | None = None) -> Tensor | None:
        """float32 [clips, frames, mel]; `rng` given means training.

        Raises:
            MediaError: missing, unreadable or truncated file, no sound track, not one sample, samples that are not
                numbers, longer than `max_seconds`.

        With ``compat="original"`` a missing file gives zeros, and a sound shorter than one window gives None.
        """
        try:
            waveform, rate = read_sound(source, self.config.max_seconds)
        except MissingMedia:
            if self.config.compat == "original":
                return torch.zeros(self.shape)
            raise
        try:
            return self.clips(waveform, rate, rng)
        except ValueError as error:
            raise MediaError(name_of(source), str(error)) from error

    def blank(self) -> Tensor:
        """Silence that fills every clip, put through the same pipeline (about -2.4 everywhere, not 0)."""
        c = self.config
        samples = self.window + (c.clips * c.frames_per_clip - 1) * self.shift
        return self.clips(torch.zeros(1, samples), c.sample_rate)

    def features(self, waveform: Tensor, rate: int) -> Tensor:
        """Log mel energies of a whole waveform [channels, samples], before normalisation: [frames, mel]."""
        return self._fbank(self._at_least_one_frame(self._prepare(waveform, rate)))

    def clips(self, waveform: Tensor, rate: int, rng: random.Random | None = None) -> Tensor | None:
        """The clips [clips, frames_per_clip, mel] that a waveform [channels, samples] at `rate` Hz gives.

        Only the clips that are taken are analysed: a frame's energies depend on its own 25 ms alone.

        Raises:
            ValueError: when there is no sample, or one that is not a number.
        """
        c, per_clip = self.config, self.config.frames_per_clip
        if waveform.shape[-1] == 0:
            raise ValueError("has no samples (a length of zero)")
        peak = float(waveform.abs().amax())
        if not peak <= MAX_PEAK:  # also when it is not a number
            raise ValueError(f"has samples that are not sound (peak {peak:g}, full scale is 1)")
        samples = self._prepare(waveform, rate)
        if samples.shape[1] < self.window and c.compat == "original":
            return None
        samples = self._at_least_one_frame(samples)
        frames = 1 + (samples.shape[1] - self.window) // self.shift
        # The original pads by 1 to per_clip frames, so that a sound that fits exactly gets an empty clip.
        available = frames // per_clip + 1 if c.compat == "original" else -(-frames // per_clip)
        out = torch.zeros(self.shape)
        for row, chosen in zip(out, self.choose(available, rng), strict=True):
            first, last = chosen * per_clip, min((chosen + 1) * per_clip, frames)
            if first < last:
                part = samples[:, first * self.shift : (last - 1) * self.shift + self.window]
                row[: last - first] = self._fbank(part).sub_(c.mean).div_(2 * c.std)
        return out

    def choose(self, available: int, rng: random.Random | None = None) -> list[int]:
        """Which of `available` clips are taken; numbers from `available` up stand for empty ones."""
        return pick(split_groups(max(available, self.config.clips), self.config.clips), rng)

    def _prepare(self, waveform: Tensor, rate: int) -> Tensor:
        """[1, samples] at the configured rate, in 16-bit scale."""
        mono = waveform[:1] if self.config.channel == "first" else waveform.mean(0, keepdim=True)
        if rate != self.config.sample_rate:
            mono = _resampler(rate, self.config.sample_rate)(mono)
        return mono * INT16_SCALE

    def _at_least_one_frame(self, samples: Tensor) -> Tensor:
        short = self.window - samples.shape[1]
        return torch.nn.functional.pad(samples, (0, short)) if short > 0 else samples

    def _fbank(self, samples: Tensor) -> Tensor:
        return kaldi.fbank(
            samples,
            num_mel_bins=self.config.mel_bins,
            sample_frequency=self.config.sample_rate,
            frame_length=FRAME_LENGTH_MS,
            frame_shift=FRAME_SHIFT_MS,
        )


@lru_cache(maxsize=16)
def _resampler(rate: int, wanted: int) -> torchaudio.transforms.Resample:
    # Its filter takes longer to compute than to apply to a few seconds of sound.
    return torchaudio.transforms.Resample(rate, wanted)
