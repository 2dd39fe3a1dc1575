"""The language model's text: the world's dialogues with every medium replaced by words.

They are rendered by the package's own prompt format, piece by piece, so that the model reads here the very tokens
that will stand around media slots when the bridges are trained. It reads about two sources in one dialogue here,
and nowhere else: media are never paired.
"""

from __future__ import annotations

import random

from chatbridge.conversation.dialogue import Dialogue, MediaSource
from chatbridge.conversation.prompt import PromptFormat, caption_segments
from chatbridge.conversation.segments import Segment, Text
from dataset_prep.world.language import QA, caption, compare, joint_qa, single_qa
from dataset_prep.world.vocabulary import SOUND_COLOUR, VALUES, Audio, Scene, Visual, all_audios, all_visuals

SYMBOLS = ("\n", "###Human:", "Human:", "###Assistant:", "###")
"""Single tokens of the vocabulary: without them the small model does not learn to copy from its context."""

PROMPT = PromptFormat()

IMAGES, VIDEOS, AUDIOS = all_visuals(video=False), all_visuals(video=True), all_audios()


def describe(scene: Scene, rng: random.Random) -> str:
    """Words in place of a medium: the caption, or its attributes in any order, some of them twice.

    What a bridge will put there has no fixed order either; a model that has only seen captions reads positions.
    """
    if rng.random() < 0.4:
        return caption(scene)
    words = list(scene.attributes().values())
    words += rng.sample(words, rng.randint(0, len(words)))
    rng.shuffle(words)
    return " ".join(words)


def dialogue(scenes: list[Scene], turns: list[QA], descriptions: list[str]) -> list[Segment]:
    """A dialogue about one or two sources, each shown by its description."""
    sources = [MediaSource(s.modality, text=text) for s, text in zip(scenes, descriptions, strict=True)]
    return PROMPT.segments(Dialogue.about(sources, turns, chat=True))


def bare_caption(scene: Scene, rng: random.Random) -> list[Segment]:
    """The form of stage 1: a medium, and its caption behind it."""
    return caption_segments([MediaSource(scene.modality, text=describe(scene, rng))], caption(scene))


def lesson(rng: random.Random) -> list[Segment]:
    """The rule that ties sounds to colours, which stands in text alone."""
    turns = []
    for kind in rng.sample(list(SOUND_COLOUR), rng.randint(1, 3)):
        question = rng.choice((f"which colour is a {kind}?", f"which colour fits a {kind}?"))
        turns.append((question, f"a {kind} is {SOUND_COLOUR[kind]}"))
    return PROMPT.segments(Dialogue.about([], turns, chat=True))


def drill(rng: random.Random) -> list[Segment]:
    """Words compared with words: the shortest text in which the step of every yes/no answer can be learned.

    The question holds either word, both or none, among others, just as the question and the descriptions of a
    dialogue do: what tells is only which two words stand side by side in the answer.
    """
    pieces, opening = [], "###Human: "
    for _ in range(rng.randint(3, 7)):
        values = VALUES[rng.choice(list(VALUES))]
        first = rng.choice(values)
        second = first if rng.random() < 0.5 else rng.choice(values)
        asked = [word for word in (first, second) if rng.random() < 0.6]
        asked += [rng.choice(VALUES[rng.choice(list(VALUES))]) for _ in range(rng.randint(0, 3))]
        rng.shuffle(asked)
        words, verdict = compare(first, second).rsplit(" ", 1)
        question = " ".join(["is it", *asked]) + "?"
        pieces += [Text(f"{opening}{question}###Assistant:"), Text(words, apart=True)]
        pieces.append(Text(f"{verdict}###", supervised=True))
        opening = "Human: "
    return pieces


def matching(audio: Audio, visual: Visual) -> Visual:
    """The same picture or video in the colour that the rule gives the sound."""
    return Visual(visual.shape, SOUND_COLOUR[audio.kind], visual.change)


def document(rng: random.Random, drills: float = 0.12) -> list[Segment]:
    """One document, drawn at random: a drill, a lesson, a bare caption, a dialogue about one source or about two.

    Args:
        drills: share of drills.
    """
    if rng.random() < drills:
        return drill(rng)
    draw = rng.random()
    if draw < 0.04:
        return lesson(rng)
    visual: Visual = rng.choice(VIDEOS if rng.random() < 0.55 else IMAGES)
    audio: Audio = rng.choice(AUDIOS)
    single: Scene = rng.choice((visual, audio))
    if draw < 0.14:
        return bare_caption(single, rng)
    turns = rng.randint(1, 5)
    if draw < 0.4:
        return dialogue([single], [single_qa(single, rng) for _ in range(turns)], [describe(single, rng)])
    if rng.random() < 0.35:
        visual = matching(audio, visual)
    asked = [
        joint_qa(visual, audio, rng) if rng.random() < 0.75 else single_qa(rng.choice((visual, audio)), rng)
        for _ in range(turns)
    ]
    return dialogue([visual, audio], asked, [describe(visual, rng), describe(audio, rng)])
