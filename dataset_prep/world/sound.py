"""Synthesised sounds: seven kinds, each at any pitch and tempo."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset_prep.world.vocabulary import Audio

RATE = 16_000
SAMPLES = 20_480
"""1.28 s: 126 frames of 10 ms, and a whole number of AAC frames."""

PITCH_HZ = {"low": (150.0, 220.0), "middle": (370.0, 520.0), "high": (850.0, 1200.0)}
PITCH_BOUNDS = (285.0, 665.0)
"""Hz between low, middle and high: in the middle of the gaps, on a logarithmic scale."""
TEMPO_SECONDS = {"slow": (0.42, 0.60), "fast": (0.14, 0.19)}
"""Time from one stroke to the next."""


def _partials(seconds: np.ndarray, hertz: np.ndarray | float, ratios: Sequence, gains: Sequence) -> np.ndarray:
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, seconds.shape)) / RATE
    heard = [(r, g) for r, g in zip(ratios, gains, strict=True) if np.max(hertz) * r < RATE / 2]
    return sum(g * np.sin(r * phase) for r, g in heard)


def _gate(seconds: np.ndarray, length: float, attack: float, release: float) -> np.ndarray:
    """An envelope that rises, holds, and falls to zero at `length`."""
    return np.clip(np.minimum(seconds / attack, (length - seconds) / release), 0, 1)


@dataclass(frozen=True)
class Voice:
    """A sound of no kind.

    Attributes:
        ratios, gains: its overtones.
        attack: seconds; decay: per second; damping: more decay for higher overtones, per second and ratio.
        held: share of the stroke that sounds.
        noise: breath; click: noise at the onset.
        bend: by how much the pitch falls from the onset on, as a share; sweep: in octaves over the stroke.
        tremble: Hz of its on and off, 0 for none.
    """

    ratios: tuple[float, ...]
    gains: tuple[float, ...]
    attack: float
    decay: float
    damping: float
    held: float
    noise: float
    click: float
    bend: float
    sweep: float
    tremble: float

    @classmethod
    def random(cls, rng: random.Random) -> Voice:
        """A voice that shares one trait or another with the named kinds: struck and fading, or blown and held."""
        struck = rng.random() < 0.5
        count = rng.randint(1, 4 if struck else 9)
        step = rng.choice((1, 1, 2, rng.uniform(1.2, 3.2)))
        slope = rng.uniform(0.3, 1.5)
        return cls(
            ratios=tuple(1 + step * k for k in range(count)),
            gains=tuple((1 + k) ** -slope * rng.uniform(0.5, 1) for k in range(count)),
            attack=rng.uniform(0.002, 0.01 if struck else 0.04),
            decay=rng.uniform(5, 20) if struck else rng.choice((0.0, rng.uniform(2, 12))),
            damping=rng.choice((0.0, rng.uniform(1, 4))) if struck else 0.0,
            held=rng.uniform(0.6, 1),
            noise=rng.random() ** 3 * 0.3,
            click=rng.choice((0.0, rng.uniform(0.2, 0.7))),
            bend=rng.choice((0.0, rng.uniform(0.2, 1))) if struck else 0.0,
            sweep=0.0 if struck else rng.choice((0.0, 0.0, rng.uniform(-1, 1))),
            tremble=0.0 if struck else rng.choice((0.0, 0.0, rng.uniform(15, 45))),
        )

    def stroke(self, hertz: float, length: float, noise: np.random.Generator) -> np.ndarray:
        """One stroke: float [samples] of `length` seconds."""
        t = np.arange(int(length * RATE)) / RATE
        glide = hertz * (1 - 0.2 * self.bend + 0.9 * self.bend * np.exp(-t * 40))
        glide = glide * 2 ** (self.sweep * (np.clip(t / (self.held * length), 0, 1) - 0.5))
        tone = self.noise * noise.standard_normal(len(t))
        for ratio, gain in zip(self.ratios, self.gains, strict=True):
            tone = tone + _partials(t, glide, [ratio], [gain]) * np.exp(-t * self.damping * (ratio - 1))
        if self.tremble:
            tone = tone * (0.55 + 0.45 * np.sign(np.sin(2 * np.pi * self.tremble * t)))
        tone = tone * np.exp(-t * self.decay) + self.click * noise.standard_normal(len(t)) * np.exp(-t * 90)
        return tone * _gate(t, self.held * length, self.attack, 0.02)


def stroke(kind: str | Voice, hertz: float, length: float, noise: np.random.Generator) -> np.ndarray:
    """One stroke of a sound: float [samples] of `length` seconds, peak about 1."""
    t = np.arange(int(length * RATE)) / RATE
    held = 0.72 * length
    if isinstance(kind, Voice):
        return kind.stroke(hertz, length, noise)
    if kind == "bell":
        ratios, gains = [1.0, 2.76, 5.4, 8.93], [1.0, 0.7, 0.45, 0.25]
        rings = [_partials(t, hertz, [r], [g]) * np.exp(-t * (6 + 3 * r)) for r, g in zip(ratios, gains, strict=True)]
        return sum(rings) * _gate(t, length, 0.002, 0.01)
    if kind == "flute":
        vibrato = hertz * (1 + 0.012 * np.sin(2 * np.pi * 6 * t))
        breath = 0.03 * noise.standard_normal(len(t))
        return (_partials(t, vibrato, [1, 2], [1.0, 0.12]) + breath) * _gate(t, held, 0.03, 0.04)
    if kind == "horn":
        order = list(range(1, 9))
        return 0.6 * _partials(t, hertz, order, [1 / n for n in order]) * _gate(t, held, 0.025, 0.04)
    if kind == "drum":
        skin = _partials(t, hertz * (0.8 + 0.9 * np.exp(-t * 40)), [1], [1.0]) * np.exp(-t * 16)
        return skin + 0.5 * noise.standard_normal(len(t)) * np.exp(-t * 90)
    if kind == "buzzer":
        order = [1, 3, 5, 7, 9, 11]
        tremble = 0.55 + 0.45 * np.sign(np.sin(2 * np.pi * 33 * t))
        return 0.7 * _partials(t, hertz, order, [1 / n for n in order]) * tremble * _gate(t, held, 0.003, 0.003)
    if kind == "siren":
        sweep = hertz * 2 ** (0.9 * np.clip(t / held, 0, 1) - 0.45)
        return _partials(t, sweep, [1, 2, 3], [1.0, 0.4, 0.2]) * _gate(t, held, 0.01, 0.02)
    # A rattle is noise around its pitch: noise slow enough to stay in a narrow band, carried up by a sine.
    width = max(2, int(RATE / (0.5 * hertz)))
    slow = np.convolve(noise.standard_normal(len(t) + width - 1), np.ones(width) / np.sqrt(width), "valid")
    grains = np.exp(-(t % 0.028) * 70)
    return slow * np.sin(2 * np.pi * hertz * t) * grains * _gate(t, held, 0.002, 0.02)


def synthesise(kind: str | Voice, hertz: float, interval: float, rng: random.Random) -> np.ndarray:
    """Strokes of one kind at a steady tempo, with a little noise: float32 [SAMPLES], peak below 1.

    Args:
        kind: one of `vocabulary.SOUNDS`, or a voice of no kind.
        hertz: fundamental (of a rattle: centre of its band).
        interval: seconds from one stroke to the next.
    """
    noise = np.random.default_rng(rng.getrandbits(32))
    wave = noise.normal(0, 10 ** rng.uniform(-3.5, -2.5), SAMPLES)
    onset = rng.uniform(0.0, 0.5) * interval
    while onset * RATE < SAMPLES - 400:
        start = int(onset * RATE)
        tone = stroke(kind, hertz * rng.uniform(0.99, 1.01), interval * 0.98, noise)[: SAMPLES - start]
        wave[start : start + len(tone)] += tone * rng.uniform(0.85, 1.0)
        onset += interval * rng.uniform(0.97, 1.03)
    return (wave * rng.uniform(0.25, 0.8) / np.abs(wave).max()).astype(np.float32)


def between(bounds: tuple[float, float], rng: random.Random) -> float:
    """A value drawn evenly on the logarithmic scale."""
    return float(np.exp(rng.uniform(*np.log(bounds))))


def sound(scene: Audio, rng: random.Random) -> np.ndarray:
    """A sound of the scene: float32 [SAMPLES] at RATE."""
    return synthesise(scene.kind, between(PITCH_HZ[scene.pitch], rng), between(TEMPO_SECONDS[scene.tempo], rng), rng)
