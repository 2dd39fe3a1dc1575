"""Clips of sound -> normalised Kaldi log mel filter banks, in a worker or, many at once, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, gcd
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.compliance import kaldi

from chatbridge.common.batch import RawMedia
from chatbridge.processors.resampling import reach, resample

FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
FULL_SCALE = 2.0**15
"""Kaldi works on samples of 16-bit size; samples as floats are in [-1, 1)."""

TOGETHER = 16
"""Clips that a GPU analyses at once: about 30 MB of intermediate results each."""


@dataclass(frozen=True, slots=True)
class FilterBank:
    """How filter banks are computed: see `AudioConfig`, from which its values are."""

    sample_rate: int
    mel_bins: int
    frames_per_clip: int
    mean: float
    std: float

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return self.sample_rate * FRAME_LENGTH_MS // 1000

    @property
    def shift(self) -> int:
        """Samples from a frame's beginning to the next one's."""
        return self.sample_rate * FRAME_SHIFT_MS // 1000

    def energies(self, samples: Tensor) -> Tensor:
        """Log mel energies of samples [1, L] in 16-bit scale, before normalisation: [frames, mel]."""
        with torch.autocast(samples.device.type, enabled=False):  # energies go far beyond what 16 bits can hold
            return kaldi.fbank(
                samples,
                num_mel_bins=self.mel_bins,
                sample_frequency=self.sample_rate,
                frame_length=FRAME_LENGTH_MS,
                frame_shift=FRAME_SHIFT_MS,
            )

    def resampled(self, samples: Tensor, rate: int) -> Tensor:
        """Samples [M, L] at the bank's rate."""
        with torch.autocast(samples.device.type, enabled=False):
            return resample(samples, rate, self.sample_rate)

    def length(self, samples: int, rate: int) -> int:
        """How many samples so many at `rate` Hz become."""
        common = gcd(rate, self.sample_rate)
        return ceil(self.sample_rate // common * samples / (rate // common))

    def span(self, first: int, last: int, rate: int) -> tuple[int, int, int]:
        """Samples at `rate` Hz that frames `first` to before `last` depend on.

        Returns:
            (begin, end, how many samples of the bank's rate come before the first frame when that part is resampled).
        """
        start, stop = first * self.shift, (last - 1) * self.shift + self.window
        if rate == self.sample_rate:
            return start, stop, 0
        width = reach(rate, self.sample_rate)
        common = gcd(rate, self.sample_rate)
        old, new = rate // common, self.sample_rate // common
        block = max(0, start // new - ceil(width / old))  # resampling goes by blocks: so many old to so many new ones
        return block * old, (ceil(stop / new) + 1) * old + width, start - block * new


class Clip(NamedTuple):
    """How a clip's samples become frames: their rate in Hz, resampled samples before the first frame, frames."""

    rate: int
    skip: int
    frames: int


@dataclass(slots=True)
class RawSounds(RawMedia):
    """Samples of clips, at the rates of their files.

    Attributes:
        samples: [N, T, S], int16, or floats in [-1, 1); zeros behind the end of a clip.
        clips: of each of the N x T.
    """

    samples: Tensor
    clips: tuple[tuple[Clip, ...], ...]
    bank: FilterBank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.samples.shape[1], self.bank.frames_per_clip, self.bank.mel_bins

    @property
    def settings(self) -> FilterBank:
        return self.bank

    def __len__(self) -> int:
        return len(self.samples)

    def finished(self) -> Tensor:
        """float32 [N, T, frames_per_clip, mel_bins]: normalised, then zeros behind the end of a clip.

        On a GPU in float64, which no setting for speed (TF32, autocast) makes coarser.
        """
        if self.samples.is_cuda:
            return self.analysed(torch.float64, TOGETHER)
        return self.analysed(torch.float32, 1)

    def analysed(self, dtype: torch.dtype, together: int) -> Tensor:
        """As `finished`, so many clips at once, computed in `dtype`."""
        bank, rows = self.bank, self.samples.flatten(0, 1)
        out = torch.zeros(len(rows), bank.frames_per_clip, bank.mel_bins, device=rows.device)
        clips = [clip for one in self.clips for clip in one]
        alike: dict[tuple[int, int], list[int]] = {}
        for number, clip in enumerate(clips):
            if clip.frames:
                alike.setdefault((clip.rate, clip.skip), []).append(number)
        for (rate, skip), numbers in alike.items():
            for start in range(0, len(numbers), together):
                part = numbers[start : start + together]
                frames = [clips[number].frames for number in part]
                samples = rows[part].to(dtype)
                if rows.is_floating_point():
                    samples *= FULL_SCALE
                values = self._frames(bank.resampled(samples, rate)[:, skip:], frames)
                out[part, : values.shape[1]] = values.to(out.dtype)
        return out.unflatten(0, self.samples.shape[:2])

    def _frames(self, samples: Tensor, counts: list[int]) -> Tensor:
        """Normalised frames of clips [M, L], zeros behind each one's count: [M, most of the counts, mel]."""
        bank, most = self.bank, max(counts)
        needed = (most - 1) * bank.shift + bank.window
        if len(counts) > 1:  # each begins where a frame begins
            needed = ceil(needed / bank.shift) * bank.shift
        if samples.shape[1] < needed:
            samples = F.pad(samples, (0, needed - samples.shape[1]))
        samples = samples[:, :needed]
        # One clip after the other in a row: the frames that lie across a joint belong to no clip and are left out.
        energies = bank.energies(samples.reshape(1, -1))
        if len(counts) > 1:
            each = needed // bank.shift
            energies = F.pad(energies, (0, 0, 0, len(counts) * each - len(energies)))
            energies = energies.view(len(counts), each, -1)[:, :most]
        values = energies.sub_(bank.mean).div_(2 * bank.std).view(len(counts), most, -1)
        if min(counts) < most:
            ends = torch.tensor(counts, device=values.device)[:, None, None]
            values = values.masked_fill_(torch.arange(most, device=values.device)[:, None] >= ends, 0.0)
        return values

    @classmethod
    def joined(cls, media: Sequence[RawSounds]) -> RawSounds:
        parts = [medium.samples[0] for medium in media]
        if any(part.is_floating_point() for part in parts):
            parts = [part if part.is_floating_point() else part / FULL_SCALE for part in parts]
        samples = parts[0].new_zeros(len(parts), len(parts[0]), max(part.shape[1] for part in parts))
        for row, part in zip(samples, parts, strict=True):
            row[:, : part.shape[1]] = part
        return cls(samples, tuple(medium.clips[0] for medium in media), media[0].bank)
