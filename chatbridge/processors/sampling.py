"""Which frames of a video, or clips of a sound, are looked at.

Indices only: nothing here opens a file. They are of frames that exist, and always as many as the model expects.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from chatbridge.common.read_mode import ReadMode, Training


def split_groups(count: int, groups: int) -> list[range]:
    """`count` items cut into contiguous groups of almost equal size; the first groups take the remainder.

    Needs count >= groups >= 1, so that no group is empty.
    """
    assert count >= groups >= 1, (count, groups)
    size, extra = divmod(count, groups)
    starts = [i * size + min(i, extra) for i in range(groups + 1)]
    return [range(starts[i], starts[i + 1]) for i in range(groups)]


def pick(groups: Sequence[Sequence[int]], mode: ReadMode) -> list[int]:
    """One item of each group: a random one in training, else the middle one (the lower of two)."""
    if isinstance(mode, Training):
        return [mode.rng.choice(group) for group in groups]
    return [group[(len(group) + 1) // 2 - 1] for group in groups]


def frame_groups(frames: int, wanted: int) -> list[list[int]]:
    """The frames of a video in `wanted` groups; a video that is too short repeats its last frame."""
    indices = list(range(frames)) + [frames - 1] * max(0, wanted - frames)
    return [[indices[i] for i in group] for group in split_groups(len(indices), wanted)]


def uniform(frames: int, wanted: int) -> list[int]:
    """The first frame of each of `wanted` equal stretches of the video; one too short repeats its last frame."""
    step = frames / min(frames, wanted)
    # A rounded step may give one index more, past the end.
    indices = [min(int(i), frames - 1) for i in np.arange(0, frames, step)[:wanted]]
    return indices + [frames - 1] * (wanted - len(indices))


def headtail(frames: int, wanted: int, rng: random.Random) -> list[int]:
    """Random frames, half of them from the first half of the video and half from the second, in order.

    An odd `wanted` takes its spare frame from the second half, and a video too short repeats its last frame.
    """
    amount, middle = min(frames, wanted), frames // 2
    head = min(amount // 2, middle)
    indices = sorted(rng.sample(range(middle), head)) + sorted(rng.sample(range(middle, frames), amount - head))
    return indices + [frames - 1] * (wanted - len(indices))
