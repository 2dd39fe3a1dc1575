"""What exists in the world: attributes, the rule that ties sounds to colours, the pairs kept for the test."""

from __future__ import annotations

import random
from dataclasses import dataclass

SHAPES = ("square", "triangle", "star", "cross", "heart", "moon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
CHANGES = ("grows", "shrinks", "rises", "sinks", "turns", "blinks")
SOUNDS = ("bell", "flute", "horn", "drum", "buzzer", "siren", "rattle")
PITCHES = ("low", "middle", "high")
TEMPOS = ("slow", "fast")

SOUND_COLOUR = {
    "bell": "yellow",
    "flute": "green",
    "horn": "orange",
    "drum": "red",
    "buzzer": "purple",
    "siren": "blue",
    "rattle": "white",
}
"""The rule of the world. It stands in text only: no picture, video or sound is ever trained with it."""

UNSEEN_VISUAL = frozenset((shape, COLOURS[(2 * i + 1) % 7]) for i, shape in enumerate(SHAPES))
"""(shape, colour) pairs that no label of the encoders or bridges joins: one for every shape."""

UNSEEN_AUDIO = frozenset((kind, PITCHES[i % 3]) for i, kind in enumerate(SOUNDS[:5]))
"""(kind, pitch) pairs that no label of the encoders or bridges joins."""

VALUES = {
    "shape": SHAPES,
    "colour": COLOURS,
    "change": CHANGES,
    "kind": SOUNDS,
    "pitch": PITCHES,
    "tempo": TEMPOS,
}
"""Attribute name -> its values."""


@dataclass(frozen=True)
class Visual:
    """What a picture (`change` is None) or a video shows."""

    shape: str
    colour: str
    change: str | None = None

    @property
    def modality(self) -> str:
        return "image" if self.change is None else "video"

    @property
    def unseen(self) -> bool:
        """Whether this pair of shape and colour is kept for the test."""
        return (self.shape, self.colour) in UNSEEN_VISUAL

    def attributes(self) -> dict[str, str]:
        """Attribute name -> value."""
        pairs = {"shape": self.shape, "colour": self.colour}
        return pairs if self.change is None else {**pairs, "change": self.change}


@dataclass(frozen=True)
class Audio:
    """What a sound is."""

    kind: str
    pitch: str
    tempo: str

    modality = "audio"

    @property
    def unseen(self) -> bool:
        """Whether this pair of kind and pitch is kept for the test."""
        return (self.kind, self.pitch) in UNSEEN_AUDIO

    def attributes(self) -> dict[str, str]:
        """Attribute name -> value."""
        return {"kind": self.kind, "pitch": self.pitch, "tempo": self.tempo}


Scene = Visual | Audio


def all_visuals(video: bool) -> list[Visual]:
    """Every picture (or video) that the attributes allow, in a fixed order."""
    changes = CHANGES if video else (None,)
    return [Visual(s, c, d) for s in SHAPES for c in COLOURS for d in changes]


def all_audios() -> list[Audio]:
    """Every sound that the attributes allow, in a fixed order."""
    return [Audio(k, p, t) for k in SOUNDS for p in PITCHES for t in TEMPOS]


def all_scenes(modality: str) -> list[Scene]:
    """Every scene of "image", "video" or "audio"."""
    return all_audios() if modality == "audio" else all_visuals(modality == "video")


def deal(pool: list, count: int, rng: random.Random) -> list:
    """`count` scenes in random order, each of the pool as often as any other (give or take one)."""
    dealt: list = []
    while len(dealt) < count:
        dealt += rng.sample(pool, len(pool))
    dealt = dealt[:count]
    rng.shuffle(dealt)
    return dealt
