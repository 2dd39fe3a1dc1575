"""How the world is spoken of: captions, questions and answers, about one source or about two.

Answers to yes/no questions reason in a short chain before their verdict ("red vs blue differ, so no"): a small
language model learns to compare two words only when it may write them down first. The verdict follows the last "so".
"""

from __future__ import annotations

import random

from dataset_prep.world.vocabulary import SOUND_COLOUR, VALUES, Audio, Scene, Visual

QA = tuple[str, str]
"""A question and its answer."""

CAPTION_QUESTIONS = {
    "image": ("describe the image.", "what do you see?"),
    "video": ("describe the video.", "what do you see?"),
    "audio": ("describe the audio.", "what do you hear?"),
}
OPEN_QUESTIONS = {
    "shape": ("what shape is it?", "which shape do you see?"),
    "colour": ("what colour is the shape?", "which colour do you see?"),
    "change": ("what does the shape do?", "which change do you see?"),
    "kind": ("what makes the sound?", "which sound do you hear?"),
    "pitch": ("how high is the sound?", "which pitch do you hear?"),
    "tempo": ("how fast is the sound?", "which tempo do you hear?"),
}
NOUNS = {
    "shape": "the shape",
    "colour": "the colour",
    "change": "the change",
    "kind": "the sound",
    "pitch": "the pitch",
    "tempo": "the tempo",
}
VISUAL_CLAIMS = {"shape": "the shape is a {}", "colour": "the shape is {}", "change": "the shape {}"}
AUDIO_CLAIMS = {"kind": "the sound is a {}", "pitch": "the sound is {}", "tempo": "the sound is {}"}
CLAIMS = {**VISUAL_CLAIMS, **AUDIO_CLAIMS}

BOTH_QUESTIONS = ("what do you see and hear?", "describe what you see and hear.")
RULE_QUESTIONS = ("does the sound match the colour?", "does the colour fit the sound?")
VERDICTS = {
    (True, True): "both",
    (True, False): "only the sound",
    (False, True): "only the shape",
    (False, False): "neither",
}


def caption(scene: Scene) -> str:
    """The caption of a picture, video or sound, all of its attributes in a fixed order."""
    if isinstance(scene, Audio):
        return f"a {scene.tempo} {scene.pitch} {scene.kind}"
    still = f"{'an' if scene.colour[0] in 'aeiou' else 'a'} {scene.colour} {scene.shape}"
    return still if scene.change is None else f"{still} {scene.change}"


def joint_caption(visual: Visual, audio: Audio) -> str:
    """The caption of a picture or video together with a sound."""
    return f"{caption(visual)} and {caption(audio)}"


def caption_qa(scene: Scene, rng: random.Random) -> QA:
    """The question "what do you see?" (or hear), and the caption."""
    return rng.choice(CAPTION_QUESTIONS[scene.modality]), caption(scene)


def open_qa(scene: Scene, attribute: str, rng: random.Random) -> QA:
    """A question about one attribute, answered by its value."""
    return rng.choice(OPEN_QUESTIONS[attribute]), scene.attributes()[attribute]


def compare(seen: str, asked: str) -> str:
    """The reasoning step that sets what is there against what was asked for."""
    return f"{seen} vs {asked} {'same' if seen == asked else 'differ'}"


def asked_value(attribute: str, truth: str, same: bool, rng: random.Random) -> str:
    """The true value, or another one of the attribute."""
    return truth if same else rng.choice([value for value in VALUES[attribute] if value != truth])


def claim_qa(scene: Scene, attribute: str, same: bool, rng: random.Random) -> QA:
    """A claim about one attribute, true or false, judged by yes or no."""
    seen = scene.attributes()[attribute]
    asked = asked_value(attribute, seen, same, rng)
    verdict = "yes" if same else "no"
    return f"is it so that {CLAIMS[attribute].format(asked)}?", f"{compare(seen, asked)}, so {verdict}"


def single_qa(scene: Scene, rng: random.Random) -> QA:
    """Any question about one source: an attribute, a claim, or the caption."""
    attribute = rng.choice(list(scene.attributes()))
    draw = rng.random()
    if draw < 0.45:
        return open_qa(scene, attribute, rng)
    if draw < 0.75:
        return claim_qa(scene, attribute, rng.random() < 0.5, rng)
    return caption_qa(scene, rng)


def both_qa(visual: Visual, audio: Audio, rng: random.Random) -> QA:
    """The question "what do you see and hear?", and both captions."""
    return rng.choice(BOTH_QUESTIONS), joint_caption(visual, audio)


def two_attributes_qa(visual: Visual, audio: Audio, seen: str, heard: str) -> QA:
    """One attribute of what is seen and one of what is heard, asked for in one question."""
    question = f"tell {NOUNS[seen]} and {NOUNS[heard]}."
    return question, f"{visual.attributes()[seen]} and {audio.attributes()[heard]}"


def rule_qa(visual: Visual, audio: Audio, rng: random.Random) -> QA:
    """Whether the sound goes with the colour, by the rule that stands in text only."""
    due = SOUND_COLOUR[audio.kind]
    verdict = "yes" if due == visual.colour else "no"
    return rng.choice(RULE_QUESTIONS), f"a {audio.kind} is {due}, {compare(visual.colour, due)}, so {verdict}"


def while_qa(
    visual: Visual, audio: Audio, seen: str, heard: str, quadrant: tuple[bool, bool], rng: random.Random
) -> QA:
    """Asks "is it so that the sound is ... while the shape is ...?": both, only one of the two, or neither.

    Args:
        seen, heard: the attributes that the two claims are about.
        quadrant: whether the claim about the sound is true, and whether the one about the shape is.
    """
    there, due = audio.attributes()[heard], asked_value(heard, audio.attributes()[heard], quadrant[0], rng)
    shown, expected = visual.attributes()[seen], asked_value(seen, visual.attributes()[seen], quadrant[1], rng)
    question = f"is it so that {CLAIMS[heard].format(due)} while {CLAIMS[seen].format(expected)}?"
    return question, f"{compare(there, due)}, {compare(shown, expected)}, so {VERDICTS[quadrant]}"


def random_while_qa(visual: Visual, audio: Audio, rng: random.Random) -> QA:
    """`while_qa` about attributes and in a quadrant drawn evenly."""
    seen, heard = rng.choice(list(visual.attributes())), rng.choice(list(audio.attributes()))
    return while_qa(visual, audio, seen, heard, rng.choice(list(VERDICTS)), rng)


def joint_qa(visual: Visual, audio: Audio, rng: random.Random) -> QA:
    """Any question about two sources at once."""
    draw = rng.random()
    if draw < 0.25:
        return both_qa(visual, audio, rng)
    if draw < 0.5:
        return two_attributes_qa(
            visual, audio, rng.choice(list(visual.attributes())), rng.choice(list(audio.attributes()))
        )
    return rule_qa(visual, audio, rng) if draw < 0.72 else random_while_qa(visual, audio, rng)
