"""Which scenes each split holds, what is asked about them, and the annotation entries of both.

Only names and words are decided here; dataset_prep/world/media_files.py makes the files.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from dataset_prep.world import language
from dataset_prep.world.settings import MediaSettings
from dataset_prep.world.vocabulary import COLOURS, SOUND_COLOUR, SOUNDS, Audio, Scene, Visual, all_scenes, deal

MODALITIES = ("image", "video", "audio")
FAMILIES = ("match", "two_attributes", "caption_both")
ENDINGS = {"image": ".jpg", "video": ".mp4", "audio": ".wav"}


@dataclass(frozen=True)
class Single:
    """A picture, a silent video or a sound, and where it is written."""

    scene: Scene
    file: str


@dataclass(frozen=True)
class Joint:
    """A picture or video with a sound: a video carries it as its sound track, a picture has it in a file beside."""

    visual: Visual
    audio: Audio
    visual_file: str
    audio_file: str


def split_scenes(modality: str, count: int, unseen: bool, rng: random.Random) -> list[Scene]:
    """`count` scenes without the pairs kept for the test, or of those pairs only."""
    return deal([scene for scene in all_scenes(modality) if scene.unseen == unseen], count, rng)


def singles(modality: str, split: str, count: int, rng: random.Random) -> list[Single]:
    """The media of one split: "train", "test" or "unseen"."""
    scenes = split_scenes(modality, count, split == "unseen", rng)
    folder, ending = f"{modality}s/{split}", ENDINGS[modality]
    return [Single(scene, f"{folder}/{i:05d}{ending}") for i, scene in enumerate(scenes)]


def caption_entries(media: list[Single]) -> list[dict]:
    """Stage 1 and its evaluation: a file and its caption."""
    return [{f"{m.scene.modality}_id": m.file, "caption": language.caption(m.scene)} for m in media]


def turns_about(scene: Scene, count: int, rng: random.Random) -> list[language.QA]:
    """`count` different questions about one source: its attributes, claims about them, its caption."""
    attributes = list(scene.attributes())
    asked: list[Callable[[], language.QA]] = [lambda a=a: language.open_qa(scene, a, rng) for a in attributes]
    asked += [lambda: language.claim_qa(scene, rng.choice(attributes), rng.random() < 0.5, rng)] * 2
    asked += [lambda: language.caption_qa(scene, rng)] * 2
    return [make() for make in rng.sample(asked, count)]


def conversation_entries(media: list[Single], turns: int, rng: random.Random) -> list[dict]:
    """Stage 2: a file and a dialogue about it."""
    entries = []
    for m in media:
        said = []
        for question, answer in turns_about(m.scene, turns, rng):
            said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        entries.append({f"{m.scene.modality}_id": m.file, "conversations": said})
    return entries


def qa_entries(media: list[Single], rng: random.Random) -> list[dict]:
    """Evaluation: one question about each file, attributes and claims in turn, claims true and false in turn."""
    entries = []
    for i, m in enumerate(media):
        attributes = list(m.scene.attributes())
        kind = i % (len(attributes) + 1)
        if kind < len(attributes):
            group, (question, answer) = attributes[kind], language.open_qa(m.scene, attributes[kind], rng)
        else:
            nth = i // (len(attributes) + 1)
            attribute = attributes[nth // 2 % len(attributes)]
            group, (question, answer) = "claim", language.claim_qa(m.scene, attribute, nth % 2 == 0, rng)
        entries.append({f"{m.scene.modality}_id": m.file, "question": question, "answer": answer, "group": group})
    return entries


def joint_entries(
    modality: str, family: str, count: int, unseen: bool, rng: random.Random
) -> tuple[list[Joint], list[dict]]:
    """The joint test of one family over pictures or videos: what to write, and the questions.

    Every pair of a sound with a picture or video is made for one question here and occurs nowhere else. Questions
    whose answer is yes or no are half of either; claims about both sources fill the four quadrants evenly.
    """
    visuals = split_scenes(modality, count, unseen, rng)
    audios = split_scenes("audio", count, unseen, rng)
    pairs = list(zip(visuals, audios, strict=True))
    if family == "match":
        pairs[::2] = rule_pairs(modality, len(pairs[::2]), unseen, rng)
    folder = f"joint/{'unseen_' if unseen else ''}{modality}_{family}"
    media, entries = [], []
    for i, (visual, audio) in enumerate(pairs):
        file = f"{folder}/{i:05d}"
        sound = f"{file}.mp4" if modality == "video" else f"{file}.wav"
        media.append(Joint(visual, audio, file + ENDINGS[modality], sound))
        group, (question, answer) = joint_question(family, i, visual, audio, rng)
        entry = {f"{modality}_id": media[-1].visual_file, "audio_id": sound}
        entries.append({**entry, "question": question, "answer": answer, "group": group})
    return media, entries


def rule_pairs(modality: str, count: int, unseen: bool, rng: random.Random) -> list[tuple[Visual, Audio]]:
    """Pictures (or videos) with sounds, by turns fitting and not fitting by the rule of the world.

    Every colour stands in as many pairs that fit as in pairs that do not, and so does every kind of sound: who only
    sees, or only hears, cannot do better than to toss a coin.

    Args:
        count: how many, an even number; from 4 on.
        unseen: of the attribute pairs kept for the test, else of all others.
    """
    assert count % 2 == 0 and count >= 4, f"{count} pairs cannot be balanced"
    visuals: dict[str, list[Visual]] = {}
    audios: dict[str, list[Audio]] = {}
    for visual in (scene for scene in all_scenes(modality) if scene.unseen == unseen):
        visuals.setdefault(visual.colour, []).append(visual)
    for audio in (scene for scene in all_scenes("audio") if scene.unseen == unseen):
        audios.setdefault(audio.kind, []).append(audio)
    kinds = deal([kind for kind in SOUNDS if kind in audios and SOUND_COLOUR[kind] in visuals], count // 2, rng)
    others = list(kinds)
    while any(kind == other for kind, other in zip(kinds, others, strict=True)):
        rng.shuffle(others)
    pairs = []
    for kind, other in zip(kinds, others, strict=True):
        pairs += [(rng.choice(visuals[SOUND_COLOUR[kind]]), rng.choice(audios[heard])) for heard in (kind, other)]
    return pairs


def joint_question(family: str, i: int, visual: Visual, audio: Audio, rng: random.Random) -> tuple[str, language.QA]:
    """The i-th question of a family and the group that it is reported in."""
    if family == "caption_both":
        return family, language.both_qa(visual, audio, rng)
    seen = list(visual.attributes())
    heard = list(audio.attributes())
    if family == "two_attributes":
        a, b = seen[i % len(seen)], heard[i // len(seen) % len(heard)]
        return f"{a}+{b}", language.two_attributes_qa(visual, audio, a, b)
    if i % 2 == 0:
        return "rule", language.rule_qa(visual, audio, rng)
    quadrant = list(language.VERDICTS)[i // 2 % 4]
    return "while", language.while_qa(visual, audio, rng.choice(seen), rng.choice(heard), quadrant, rng)


@dataclass
class WorldPlan:
    """Everything that is to be written: annotation file name -> entries, and the media."""

    annotations: dict[str, list[dict]]
    singles: list[Single]
    joints: list[Joint]


def plan(settings: MediaSettings, seed: int) -> WorldPlan:
    """All splits of the world, a pure function of settings and seed."""
    rng = random.Random(f"{seed} plan")
    out = WorldPlan({}, [], [])
    for modality in MODALITIES:
        train = singles(modality, "train", getattr(settings, modality), rng)
        out.annotations[f"stage1_{modality}"] = caption_entries(train)
        out.annotations[f"stage2_{modality}"] = conversation_entries(train, settings.turns, rng)
        out.singles += train
        for split, count in (("test", settings.single), ("unseen", settings.unseen)):
            held = singles(modality, split, count, rng)
            out.annotations[f"{split}_{modality}_caption"] = caption_entries(held)
            out.annotations[f"{split}_{modality}_qa"] = qa_entries(held, rng)
            out.singles += held
    for split, count in (("joint", settings.joint), ("joint_unseen", settings.unseen)):
        for modality in ("image", "video"):
            for family in FAMILIES:
                media, entries = joint_entries(modality, family, count, split == "joint_unseen", rng)
                out.annotations[f"{split}_{modality}_{family}"] = entries
                out.joints += media
    assert set(COLOURS) == set(SOUND_COLOUR.values())
    return out
