"""Sounds: an audio file, or the sound track of a video -> float32 [clips, frames, mel]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chatbridge.common.read_mode import EVALUATION, ReadMode, Training
from chatbridge.common.registry import PROCESSORS
from chatbridge.common.schema import key
from chatbridge.processors.base import PREPROCESS_ON, MediaError, Source, media_errors, name_of
from chatbridge.processors.filter_banks import FULL_SCALE, Clip, FilterBank, RawSounds
from chatbridge.processors.sampling import pick, split_groups
from chatbridge.processors.sound_files import SOUNDFILE_EXTENSIONS, read_sound
from chatbridge.processors.time_limit import READ_SECONDS
from chatbridge.processors.video import VIDEO_EXTENSIONS

MAX_PEAK = 1e6
"""Far over full scale; from about 1e12 up, energies overflow."""


@dataclass(kw_only=True)
class AudioConfig:
    """Keys of the audio processor. The defaults are those of the published checkpoints (the original's data.py)."""

    sample_rate: int = key(16000, help="sounds are resampled to this", unit="Hz", low=1000, high=192_000)
    mel_bins: int = key(64, help="mel filters", low=4, high=1024)
    frames_per_clip: int = key(
        1024, help="frames of 10 ms that the encoder takes at once", unit="frames", low=1, high=100_000
    )
    clips: int = key(
        1, help="clips taken from a sound; a short one is filled up with zeros", unit="clips", low=1, high=1024
    )
    mean: float = key(15.41663, help="subtracted from the log mel energies", low=-1e6, high=1e6)
    std: float = key(6.55582, help="half of what they are then divided by", low=1e-6, high=1e6)
    channel: str = key("first", choices=("first", "mean"), help="what becomes of stereo; published: first")
    max_seconds: float = key(3600.0, help="a longer sound is refused", unit="seconds", low=0.0, high=1e6)
    read_seconds: float = key(
        READ_SECONDS,
        help="a sound track that is not decoded in this time is refused",
        unit="seconds",
        low=0.1,
        high=1e5,
    )
    preprocess_on: str = key(
        "worker",
        choices=PREPROCESS_ON,
        help="where the filter banks of training sounds are computed; device: workers hand on the samples, which are "
        "resampled there, too. Evaluation is as with worker",
    )
    finish: str | None = key(None, choices=PREPROCESS_ON, help="earlier name of preprocess_on")

    def __post_init__(self) -> None:
        self.preprocess_on, self.finish = self.finish or self.preprocess_on, None


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
        self.bank = FilterBank(config.sample_rate, config.mel_bins, config.frames_per_clip, config.mean, config.std)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.config.clips, self.config.frames_per_clip, self.config.mel_bins)

    def load(self, source: Source, mode: ReadMode = EVALUATION) -> Tensor | RawSounds:
        """float32 [clips, frames, mel]; in training raw with ``preprocess_on: device``.

        Raises:
            MediaError: missing, unreadable or truncated file, no sound track, not one sample, samples that are not
                numbers, longer than `max_seconds`.
        """
        waveform, rate = read_sound(source, self.config.max_seconds, True, self.config.read_seconds)
        with media_errors(source, "cannot be analysed"):
            try:
                raw = self.raw(waveform, rate, mode)
            except ValueError as error:
                raise MediaError(name_of(source), str(error)) from error
            on_device = isinstance(mode, Training) and self.config.preprocess_on == "device"
            return raw if on_device else raw.finished()[0]

    def blank(self) -> Tensor:
        """Silence that fills every clip, put through the same pipeline (about -2.4 everywhere, not 0)."""
        c = self.config
        samples = self.bank.window + (c.clips * c.frames_per_clip - 1) * self.bank.shift
        return self.clips(torch.zeros(1, samples), c.sample_rate)

    def clips(self, waveform: Tensor, rate: int, mode: ReadMode = EVALUATION) -> Tensor:
        """The clips [clips, frames_per_clip, mel] that a waveform gives; arguments and errors as of `raw`."""
        return self.raw(waveform, rate, mode).finished()[0]

    def raw(self, waveform: Tensor, rate: int, mode: ReadMode = EVALUATION) -> RawSounds:
        """The clips that are taken from a waveform [channels, samples] at `rate` Hz, float in [-1, 1) or int16.

        Only these clips are resampled and analysed: a frame's energies depend on its own 25 ms alone.

        Raises:
            ValueError: when there is no sample, or one that is not a number.
        """
        bank, per_clip = self.bank, self.config.frames_per_clip
        if waveform.shape[-1] == 0:
            raise ValueError("has no samples (a length of zero)")
        if waveform.is_floating_point():
            peak = float(waveform.abs().amax())
            if not peak <= MAX_PEAK:  # also when it is not a number
                raise ValueError(f"has samples that are not sound (peak {peak:g}, full scale is 1)")
        mono = self._mono(waveform)
        length = bank.length(len(mono), rate)
        if length < bank.window:
            mono, rate = self.below_one_frame(mono, rate)
        frames = 1 + (max(length, bank.window) - bank.window) // bank.shift
        clips, parts = [], []
        for chosen in self.choose(self.clips_of(frames), mode):
            first, last = chosen * per_clip, min((chosen + 1) * per_clip, frames)
            begin, end, skip = bank.span(first, last, rate) if first < last else (0, 0, 0)
            clips.append(Clip(rate, skip, max(0, last - first)))
            parts.append(mono[begin:end])
        samples = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True) if len(parts) > 1 else parts[0][None]
        return RawSounds(samples[None], (tuple(clips),), bank)

    def below_one_frame(self, mono: Tensor, rate: int) -> tuple[Tensor, int]:
        """A sound [samples] shorter than the 25 ms of a frame, as it can be padded to them, and its rate."""
        if rate == self.config.sample_rate:
            return mono, rate
        # What is padded to one frame is the resampled sound; in a batch, its filter would ring into the padding.
        scale = 1.0 if mono.is_floating_point() else FULL_SCALE
        return self.bank.resampled(mono[None] / scale, rate)[0], self.config.sample_rate

    def clips_of(self, frames: int) -> int:
        """How many clips so many frames fill, the last of them perhaps in part."""
        return -(-frames // self.config.frames_per_clip)

    def choose(self, available: int, mode: ReadMode = EVALUATION) -> list[int]:
        """Which of `available` clips are taken; numbers from `available` up stand for empty ones."""
        return pick(split_groups(max(available, self.config.clips), self.config.clips), mode)

    def _mono(self, waveform: Tensor) -> Tensor:
        """[samples] of [channels, samples]."""
        if self.config.channel == "first" or len(waveform) == 1:
            return waveform[0]
        return (waveform if waveform.is_floating_point() else waveform / FULL_SCALE).mean(0)
