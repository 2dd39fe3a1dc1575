"""Which frames of a video, or clips of a sound, are looked at.

Indices only: nothing here opens a file. ``compat="original"`` repeats the original's arithmetic, slips included;
the default asks for frames that exist, and always for as many as the model expects.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np


def split_groups(count: int, groups: int) -> list[range]:
    """`count` items cut into contiguous groups of almost equal size; the first groups take the remainder.

    Needs count >= groups >= 1, so that no group is empty.
    """
    assert count >= groups >= 1, (count, groups)
    size, extra = divmod(count, groups)
    starts = [i * size + min(i, extra) for i in range(groups + 1)]
    return [range(starts[i], starts[i + 1]) for i in range(groups)]


def pick(groups: Sequence[Sequence[int]], rng: random.Random | None) -> list[int]:
    """One item of each group: a random one with `rng`, else the middle one (the lower of two)."""
    if rng is not None:
        return [rng.choice(group) for group in groups]
    return [group[(len(group) + 1) // 2 - 1] for group in groups]


def frame_groups(frames: int, wanted: int) -> list[list[int]]:
    """The frames of a video in `wanted` groups; a video that is too short repeats its last frame."""
    indices = list(range(frames)) + [frames - 1] * max(0, wanted - frames)
    return [[indices[i] for i in group] for group in split_groups(len(indices), wanted)]


def uniform(frames: int, wanted: int, compat: str = "default") -> list[int]:
    """The first frame of each of `wanted` equal stretches of the video.

    The original steps by a rounded float: for some lengths (17 frames in 7 stretches) that gives one index more,
    often past the end, and for a short video it gives fewer. By default the list is cut to `wanted`, kept inside
    the video, and filled up with the last frame.
    """
    step = frames / min(frames, wanted)
    indices = np.arange(0, frames, step).astype(int).tolist()
    if compat == "original":
        return indices
    indices = [min(i, frames - 1) for i in indices[:wanted]]
    return indices + [frames - 1] * (wanted - len(indices))


def headtail(frames: int, wanted: int, rng: random.Random, compat: str = "default") -> list[int]:
    """Random frames, half of them from the first half of the video and half from the second, in order.

    By default an odd `wanted` takes its spare frame from the second half, and a short video repeats its last
    frame; the original then returns fewer.

    Raises:
        ValueError: with ``compat="original"``, when not one frame is left to take.
    """
    amount, middle = min(frames, wanted), frames // 2
    if compat == "original":
        if amount < 2:
            raise ValueError(f"head and tail sampling needs two frames or more, got {frames} frames, {wanted} wanted")
        head, tail = amount // 2, amount // 2
    else:
        head = min(amount // 2, middle)
        tail = amount - head
    indices = sorted(rng.sample(range(middle), head)) + sorted(rng.sample(range(middle, frames), tail))
    if compat == "original":
        return indices
    return indices + [frames - 1] * (wanted - len(indices))
