"""Sounds at another rate: torchaudio's windowed sinc, in bounded memory whatever the two rates are.

torchaudio lays out the filter's weights for every phase in a table: one row for each sample of a period, as long as the
period. Ordinary rates have short ones (44.1 to 16 kHz: 160 x 475); 44,101 Hz has only itself in common with 16,000, and
a table of 6 GB. Where it would be large, the weights of the samples that matter are computed as they are needed.
Source: Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd, pi

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

ZEROS, ROLLOFF = 6, 0.99
"""Zero crossings to either side of the filter, and where it ends as a share of the lower rate's half: torchaudio's."""

LARGEST_TABLE = 1 << 21
"""Weights. The largest among usual rates, from 11,025 to 48,000 Hz, has a fifth of that."""

TOGETHER = 1 << 20
"""Weights that are computed at once."""


def resample(samples: Tensor, rate: int, wanted: int) -> Tensor:
    """Samples [M, L] at `rate` Hz -> [M, ceil(L * wanted / rate)]: float32 or float64."""
    if rate == wanted:
        return samples
    common = gcd(rate, wanted)
    old, new = rate // common, wanted // common
    if new * (old + 2 * reach(rate, wanted)) <= LARGEST_TABLE:
        return _resampler(old, new, samples.dtype, str(samples.device))(samples)
    return _without_table(samples, old, new)


def reach(rate: int, wanted: int) -> int:
    """Samples at `rate` Hz to either side of a moment that a sample at `wanted` Hz there depends on."""
    common = gcd(rate, wanted)
    return ceil(ZEROS * (rate // common) / (min(rate, wanted) // common * ROLLOFF))


@lru_cache(maxsize=32)
def _resampler(old: int, new: int, dtype: torch.dtype, device: str) -> torchaudio.transforms.Resample:
    # Its filter takes longer to compute than to apply to a few seconds of sound.
    return torchaudio.transforms.Resample(old, new, dtype=None if dtype == torch.float32 else dtype).to(device)


def _without_table(samples: Tensor, old: int, new: int) -> Tensor:
    """The same sums; `old` and `new` have no common divisor."""
    width, base, device = reach(old, new), min(old, new) * ROLLOFF, samples.device
    length = ceil(new * samples.shape[1] / old)
    padded = F.pad(samples, (width, width + 1))
    taps = torch.arange(-width, width + 2, device=device)
    out = samples.new_empty(len(samples), length)
    block = max(1, TOGETHER // (len(taps) * max(1, len(samples))))
    for start in range(0, length, block):
        numbers = torch.arange(start, min(start + block, length), device=device) * old
        before = numbers // new  # the last sample that is not later
        place = (taps - (numbers % new).double()[:, None] / new) * (base / old)  # in zero crossings
        window = torch.cos(place.clamp(-ZEROS, ZEROS) * (pi / ZEROS / 2)).square_()
        weights = torch.sinc(place).mul_(window).mul_(base / old).to(samples.dtype)
        near = padded[:, before[:, None] + (taps + width)]
        out[:, start : start + block] = torch.einsum("mnk,nk->mn", near, weights)
    return out
