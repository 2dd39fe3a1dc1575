"""Whether a sample is read by the rules of training or by those of evaluation."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Training:
    """What the training rules leave to chance is drawn with `rng`."""

    rng: random.Random


@dataclass(frozen=True)
class Evaluation:
    """Nothing is left to chance."""


EVALUATION = Evaluation()

ReadMode: TypeAlias = Training | Evaluation
