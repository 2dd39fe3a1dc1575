"""Sounds to pre-train the audio encoder on: labelled ones, re-pitched ones, and tones of no kind.

The remedy is that of the pictures: no label joins a kind with a pitch whose pair is kept for the test. Re-pitched
sounds (any pitch, any tempo) carry the label of their kind only, tones of no kind those of pitch and tempo only.
Where the pair is not kept, the fundamental is a label, too, as a number: with only three names to go by, the encoder
takes a low bell, which was never labelled low, for a high one.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from chatbridge.processors.audio import AudioConfig, AudioProcessor
from dataset_prep.world import sound
from dataset_prep.world.vision_pool import UNKNOWN
from dataset_prep.world.vocabulary import PITCHES, SOUNDS, TEMPOS, UNSEEN_AUDIO, Audio, all_audios

FRAMES, MELS = 128, 64


@dataclass
class AudioPool:
    """Examples, M of them.

    Attributes:
        fbank: float [M, FRAMES, MELS].
        labels: int64 [M, 3], classes of kind, pitch and tempo; UNKNOWN where not labelled.
        octaves: float [M], the fundamental in octaves above or below 415 Hz; nan where not labelled.
    """

    fbank: Tensor
    labels: Tensor
    octaves: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PoolSound:
    """A sound and its labels: classes of kind, pitch and tempo, and octaves as in `AudioPool`."""

    samples: np.ndarray
    labels: tuple[int, int, int]
    octaves: float


def octaves(hertz: float) -> float:
    """Octaves above (or, negative, below) 415 Hz, about the middle of all pitches."""
    return math.log2(hertz / 415)


def pitch_of(hertz: float) -> str:
    """The pitch that a fundamental belongs to or is nearest to."""
    return PITCHES[sum(hertz > bound for bound in sound.PITCH_BOUNDS)]


def labelled(scene: Audio, rng: random.Random) -> PoolSound:
    """A sound of a scene, with all of its labels."""
    hertz = sound.between(sound.PITCH_HZ[scene.pitch], rng)
    samples = sound.synthesise(scene.kind, hertz, sound.between(sound.TEMPO_SECONDS[scene.tempo], rng), rng)
    labels = (SOUNDS.index(scene.kind), PITCHES.index(scene.pitch), TEMPOS.index(scene.tempo))
    return PoolSound(samples, labels, octaves(hertz))


def repitched(rng: random.Random) -> PoolSound:
    """A sound of a known kind at any pitch and tempo; its pitch is no label near a pair kept for the test."""
    kind, hertz = rng.choice(SOUNDS), sound.between((120, 1500), rng)
    samples = sound.synthesise(kind, hertz, sound.between((0.12, 0.7), rng), rng)
    kept = (kind, pitch_of(hertz)) in UNSEEN_AUDIO
    return PoolSound(samples, (SOUNDS.index(kind), UNKNOWN, UNKNOWN), math.nan if kept else octaves(hertz))


def kindless(rng: random.Random) -> PoolSound:
    """Strokes of a nameless voice at a known pitch and tempo."""
    pitch, tempo = rng.choice(PITCHES), rng.choice(TEMPOS)
    hertz, interval = sound.between(sound.PITCH_HZ[pitch], rng), sound.between(sound.TEMPO_SECONDS[tempo], rng)
    samples = sound.synthesise(sound.Voice.random(rng), hertz, interval, rng)
    return PoolSound(samples, (UNKNOWN, PITCHES.index(pitch), TEMPOS.index(tempo)), octaves(hertz))


def make_pool(count: int, altered: float, rng: random.Random, held: bool = False, show: bool = False) -> AudioPool:
    """`count` examples, a share `altered` of them without all of their labels.

    Args:
        held: take the pairs kept for the test instead of all others (to measure, never to train).
        show: with a progress bar.
    """
    processor = AudioProcessor(AudioConfig(mel_bins=MELS, frames_per_clip=FRAMES))
    scenes = [scene for scene in all_audios() if scene.unseen == held]
    fbanks, examples = [], []
    for _ in tqdm(range(count), desc="sounds", unit="sound", disable=not show, mininterval=1.0, leave=False):
        if rng.random() < altered:
            example = repitched(rng) if rng.random() < 0.4 else kindless(rng)
        else:
            example = labelled(rng.choice(scenes), rng)
        fbanks.append(processor.clips(torch.from_numpy(example.samples)[None], sound.RATE)[0])
        examples.append(example)
    labels, heights = [e.labels for e in examples], [e.octaves for e in examples]
    return AudioPool(torch.stack(fbanks), torch.tensor(labels), torch.tensor(heights))
