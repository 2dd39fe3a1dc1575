"""The embedded world: made alike by the same seed, nothing of the test in the training, questions that need both."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from chatbridge.datasets.annotations import AnnotationFile
from chatbridge.datasets.kinds import TaskKind
from dataset_prep.world import annotations, audio_pool, build, corpus, draw, language, sound, vision_pool
from dataset_prep.world.__main__ import main
from dataset_prep.world.media_files import write_media, write_single
from dataset_prep.world.pretrain_llm import soften
from dataset_prep.world.settings import SCALES, MediaSettings, WorldSettings
from dataset_prep.world.vocabulary import (
    CHANGES,
    COLOURS,
    PITCHES,
    SHAPES,
    SOUND_COLOUR,
    SOUNDS,
    UNSEEN_AUDIO,
    UNSEEN_VISUAL,
    VALUES,
    Visual,
    all_audios,
    all_scenes,
    all_visuals,
)

SMALL = MediaSettings(image=6, video=6, audio=6, single=4, joint=8, unseen=8)
KINDS = {"caption": "cap", "qa": "shortqa", "stage1": "cap", "stage2": "conv"}


@pytest.fixture(scope="module")
def world():
    """The quickstart's plan: annotations and scenes, no files."""
    return annotations.plan(MediaSettings(), seed=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small world on disk, made as `build` makes it."""
    folder = tmp_path_factory.mktemp("world")
    build.make_media(folder, WorldSettings(media=SMALL), seed=3)
    return folder


def scenes_of(world):
    return {single.file: single.scene for single in world.singles}


def training(world):
    """(annotation file name, its entries) of everything that the bridges train on."""
    return {name: entries for name, entries in world.annotations.items() if name.startswith("stage")}


def test_a_seed_decides_the_world_and_another_makes_another():
    first, again, other = (annotations.plan(SMALL, seed) for seed in (1, 1, 2))
    assert first == again
    assert all(first.annotations[name] != other.annotations[name] for name in first.annotations)


def test_files_are_alike_byte_for_byte_and_do_not_depend_on_each_other(written, tmp_path):
    world = annotations.plan(SMALL, 3)
    folder = tmp_path / "again"
    write_media(folder, world, 3)
    made = sorted(p.relative_to(folder) for p in folder.rglob("*.*"))
    assert {p.suffix for p in made} == {".jpg", ".mp4", ".wav"}
    for file in made:
        assert (folder / file).read_bytes() == (written / file).read_bytes(), file
    for modality in annotations.MODALITIES:
        last = [single for single in world.singles if single.scene.modality == modality][-1]
        alone, other = tmp_path / "alone", tmp_path / "other"
        for root, seed in ((alone, 3), (other, 4)):
            (root / last.file).parent.mkdir(parents=True)
            write_single(root, last, seed)
        assert (alone / last.file).read_bytes() == (written / last.file).read_bytes()
        assert (other / last.file).read_bytes() != (written / last.file).read_bytes()


def test_no_training_sample_has_both_sound_and_sight(world):
    scenes = scenes_of(world)
    words = {"audio": set(SHAPES + COLOURS + CHANGES), "image": set(SOUNDS + PITCHES), "video": set(SOUNDS + PITCHES)}
    for name, entries in training(world).items():
        modality = name.rpartition("_")[2]
        for entry in entries:
            assert [key for key in entry if key.endswith("_id")] == [f"{modality}_id"]
            assert "/train/" in entry[f"{modality}_id"] and scenes[entry[f"{modality}_id"]].modality == modality
            said = [entry["caption"]] if "caption" in entry else [turn["value"] for turn in entry["conversations"]]
            assert not words[modality] & set(re.findall(r"\w+", " ".join(said))), f"{name}: {said}"
    assert len(training(world)) == 6


def test_training_and_test_share_no_file_and_pairs_occur_once(world):
    trained = {entry[key] for entries in training(world).values() for entry in entries for key in entry if "_id" in key}
    held = [m.file for m in world.singles if "/train/" not in m.file] + [m.visual_file for m in world.joints]
    held += [m.audio_file for m in world.joints if m.audio_file != m.visual_file]
    assert not trained & set(held) and len(held) == len(set(held))


def test_training_videos_are_silent_and_joint_ones_sound(written):
    tracks = {}
    for file in written.rglob("*.mp4"):
        with av.open(str(file)) as container:
            tracks[file.relative_to(written).as_posix()] = len(container.streams.audio)
            assert len(container.streams.video) == 1
    assert {n for file, n in tracks.items() if file.startswith("videos/")} == {0}
    joint = [n for file, n in tracks.items() if file.startswith("joint/")]
    assert set(joint) == {1} and len(joint) == 3 * (SMALL.joint + SMALL.unseen)


def test_pairs_kept_for_the_test_are_in_no_training_label(world):
    scenes = scenes_of(world)
    for single in world.singles:
        assert single.scene.unseen == ("/unseen/" in single.file)
    for joint in world.joints:
        assert joint.visual.unseen == joint.audio.unseen == ("/unseen_" in joint.visual_file)
    forbidden = {f"{colour} {shape}" for shape, colour in UNSEEN_VISUAL}
    forbidden |= {f"{pitch} {kind}" for kind, pitch in UNSEEN_AUDIO}
    for entries in training(world).values():
        assert not any(scenes[next(iter(entry.values()))].unseen for entry in entries)
        text = json.dumps(entries)
        assert not [pair for pair in forbidden if pair in text]


def test_every_value_is_seen_in_training(world):
    seen = {name: set() for name in VALUES}
    for single in world.singles:
        if "/train/" in single.file:
            for name, value in single.scene.attributes().items():
                seen[name].add(value)
    assert seen == {name: set(values) for name, values in VALUES.items()}


def test_encoders_are_told_no_kept_pair():
    torch.manual_seed(0)
    pool = vision_pool.make_pool(160, random.Random(0))
    rows = torch.arange(len(pool)).repeat(6)

    def pairs(altered, held):
        pixels, colours = vision_pool.colour_batch(pool, rows, altered, held)
        assert pixels.shape == (len(rows), 3, 56, 56) and pixels.isfinite().all()
        both = (pool.shape[rows] >= 0) & (pool.shape[rows] < len(SHAPES)) & (colours >= 0)
        joined = zip(pool.shape[rows][both].tolist(), colours[both].tolist(), strict=True)
        return {(SHAPES[s], COLOURS[c]) for s, c in joined}

    trained = pairs(0.5, False)
    assert len(trained) == 6 * 7 - 6 and not trained & UNSEEN_VISUAL
    assert pairs(0.0, True) == UNSEEN_VISUAL
    sounds = audio_pool.make_pool(30, 0.5, random.Random(0))
    kinds, pitches, _ = sounds.labels.T.tolist()
    named = {(SOUNDS[k], PITCHES[p]) for k, p in zip(kinds, pitches, strict=True) if k >= 0 and p >= 0}
    assert named and not named & UNSEEN_AUDIO
    assert -100 in kinds and -100 in pitches


def test_how_high_a_repitched_sound_is_stays_untold_near_a_kept_pair():
    for pitch, bounds in sound.PITCH_HZ.items():
        assert {audio_pool.pitch_of(hertz) for hertz in bounds} == {pitch}
    rng = random.Random(0)
    told = Counter()
    for _ in range(150):
        example = audio_pool.repitched(rng)
        kind = SOUNDS[example.labels[0]]
        assert example.labels[1:] == (-100, -100)
        if example.octaves == example.octaves:  # not nan
            pair = (kind, audio_pool.pitch_of(415 * 2**example.octaves))
            assert pair not in UNSEEN_AUDIO
            told[kind] += 1
    assert set(told) == set(SOUNDS)


def match_rows(world, split, modality):
    joints = {joint.visual_file: joint for joint in world.joints}
    for entry in world.annotations[f"{split}_{modality}_match"]:
        yield joints[entry[f"{modality}_id"]], entry, entry["answer"].rpartition("so ")[2]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("split", ["joint", "joint_unseen"])
@pytest.mark.parametrize("modality", ["image", "video"])
def test_one_modality_cannot_tell_whether_they_match(seed, split, modality):
    world = annotations.plan(MediaSettings(), seed)
    by_colour, by_kind, quadrants = Counter(), Counter(), Counter()
    for joint, entry, verdict in match_rows(world, split, modality):
        if entry["group"] == "rule":
            by_colour[joint.visual.colour, verdict] += 1
            by_kind[joint.audio.kind, verdict] += 1
        else:
            quadrants[verdict] += 1
    for views in (by_colour, by_kind):
        values = {value for value, _ in views}
        assert len(values) >= 5
        assert all(views[value, "yes"] == views[value, "no"] > 0 for value in values), views
    assert set(quadrants) == {"both", "only the sound", "only the shape", "neither"}
    assert max(quadrants.values()) - min(quadrants.values()) <= 1
    assert abs(sum(by_kind.values()) - sum(quadrants.values())) <= 1


def attribute_of(claim, scene):
    """Whether a claim, read from its words alone, is true of a scene."""
    words = set(re.findall(r"\w+", claim))
    about = [name for name, values in VALUES.items() if words & set(values)]
    assert len(about) == 1, claim
    return (words & set(VALUES[about[0]])) == {scene.attributes()[about[0]]}


def test_answers_are_true(world):
    joints = {joint.visual_file: joint for joint in world.joints}
    for modality in ("image", "video"):
        for joint, entry, verdict in match_rows(world, "joint", modality):
            if entry["group"] == "rule":
                assert (verdict == "yes") == (SOUND_COLOUR[joint.audio.kind] == joint.visual.colour)
                continue
            heard, seen = re.fullmatch(r"is it so that (.*) while (.*)\?", entry["question"]).groups()
            assert verdict == language.VERDICTS[attribute_of(heard, joint.audio), attribute_of(seen, joint.visual)]
        for entry in world.annotations[f"joint_{modality}_two_attributes"]:
            joint = joints[entry[f"{modality}_id"]]
            everything = {**joint.visual.attributes(), **joint.audio.attributes()}
            assert entry["answer"].split(" and ") == [everything[name] for name in entry["group"].split("+")]
        for entry in world.annotations[f"joint_{modality}_caption_both"]:
            joint = joints[entry[f"{modality}_id"]]
            values = {**joint.visual.attributes(), **joint.audio.attributes()}.values()
            assert set(values) <= set(entry["answer"].split())
    scenes = scenes_of(world)
    for modality in annotations.MODALITIES:
        groups = Counter()
        for entry in world.annotations[f"test_{modality}_qa"]:
            scene = scenes[entry[f"{modality}_id"]]
            groups[entry["group"]] += 1
            if entry["group"] == "claim":
                claim = entry["question"].removeprefix("is it so that ")
                assert entry["answer"].endswith("so yes" if attribute_of(claim, scene) else "so no")
            else:
                assert entry["answer"] == scene.attributes()[entry["group"]]
        assert max(groups.values()) - min(groups.values()) <= 1


def test_annotation_files_are_readable_and_name_files_that_are_there(written):
    files = sorted((written / "annotations").glob("*.json"))
    assert len(files) == 6 + 6 + 6 + 6 + 6
    named = set()
    for file in files:
        split, *middle, last = file.stem.split("_")
        if split == "joint":
            visual = next(part for part in middle if part in ("image", "video"))
            kind = TaskKind.parse({"image": "tia", "video": "tva"}[visual] + "-shortqa")
        else:
            modality = last if split.startswith("stage") else middle[0]
            kind = TaskKind.parse(f"t{modality[0]}-{KINDS[split if split.startswith('stage') else last]}")
        records = AnnotationFile(file, [kind])
        assert not records.skipped
        for record in records:
            assert set(record.files) == set(kind.modalities)
            named |= {name for names in record.files.values() for name in names}
            if split.startswith("stage2"):
                assert len(record.turns) == 2 * SMALL.turns
            if split == "joint" or last == "qa":
                assert record.group
    there = {p.relative_to(written).as_posix() for p in written.rglob("*.*") if p.parent.name != "annotations"}
    assert named == there


def test_videos_show_their_change():
    def measures(frames, ground):
        cover = [np.abs(frame.astype(int) - ground).sum(-1) > 40 for frame in frames]
        rows = [np.nonzero(c)[0].mean() if c.any() else np.nan for c in cover]
        return np.array([c.sum() for c in cover]), np.array(rows)

    for shape in SHAPES:
        for change in CHANGES:
            rng = random.Random(f"{shape} {change}")
            state = rng.getstate()
            frames = draw.video(Visual(shape, "white", change), rng)
            rng.setstate(state)
            assert len(frames) == draw.FRAMES
            area, height = measures(frames, draw.background(rng))
            growth, fall = area[-1] / max(area[0], 1), height[-1] - height[0]
            if change == "blinks":
                assert sorted(area > 0) == [False] * 4 + [True] * 4
                assert len({bool(a) for a in area[[0, 2]]}) == 2
            else:
                assert (growth > 2) == (change == "grows") and (growth < 0.5) == (change == "shrinks")
                assert (fall > 8) == (change == "sinks") and (fall < -8) == (change == "rises")


def test_sounds_have_their_pitch_and_tempo():
    for scene in all_audios():
        samples = sound.sound(scene, random.Random(str(scene)))
        assert samples.shape == (sound.SAMPLES,) and samples.dtype == np.float32
        assert 0.2 < np.abs(samples).max() <= 0.81
        if scene.kind == "flute":
            spectrum = np.abs(np.fft.rfft(samples))
            low, high = sound.PITCH_HZ[scene.pitch]
            assert 0.97 * low < spectrum.argmax() * sound.RATE / len(samples) < 1.03 * high
            loud = np.convolve(np.abs(samples), np.ones(160) / 160, "same") > 0.15 * np.abs(samples).max()
            strokes = int((np.diff(loud.astype(int)) == 1).sum())
            assert strokes <= 4 if scene.tempo == "slow" else strokes >= 6


def test_the_text_of_the_language_model_knows_two_sources_and_the_rule():
    rng = random.Random(0)
    texts = ["".join(piece.text for piece in corpus.document(rng)) for _ in range(400)]
    again = random.Random(0)
    assert texts == ["".join(piece.text for piece in corpus.document(again)) for _ in range(400)]
    words = [set(re.findall(r"\w+", text)) for text in texts if "see and hear" in text]
    assert sum(bool(found & set(SHAPES)) and bool(found & set(SOUNDS)) for found in words) > 40
    assert any(f"a {kind} is {colour}" in text for text in texts for kind, colour in SOUND_COLOUR.items())
    captions = {language.caption(scene) for m in annotations.MODALITIES for scene in all_scenes(m)}
    assert len(captions) == len(all_visuals(False)) + len(all_visuals(True)) + len(all_audios())
    assert {"an orange star turns", "a fast low bell"} <= captions


def test_words_in_the_place_of_media_are_blended_within_each_medium():
    slots = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0, 0]]).bool()
    words = torch.eye(8).expand(2, 8, 8).clone()
    torch.manual_seed(0)
    seen = soften(words, slots, noise=0.0, blend=0.5)
    assert torch.equal(seen[~slots], words[~slots])
    first, second = seen[0, 1:4], seen[0, 5:7]
    assert first[:, 1:4].sum(1).allclose(torch.ones(3)) and second[:, 5:7].sum(1).allclose(torch.ones(2))
    assert (first.diagonal(1) != 0).all() and not torch.equal(first[:, 1:4], torch.eye(3))
    assert seen[1, 5].allclose(words[1, 5]), "a medium of one word has nothing to be blended with"
    assert torch.equal(soften(words, slots, noise=0.0, blend=0.0), words)
    noisy = soften(words, slots, noise=0.3, blend=0.0)
    assert torch.equal(noisy[~slots], words[~slots]) and (noisy[slots] != words[slots]).all()


def test_two_media_never_touch():
    rng = random.Random(0)
    for _ in range(50):
        visual, audio = rng.choice(corpus.VIDEOS), rng.choice(corpus.AUDIOS)
        shown = [corpus.describe(visual, rng), corpus.describe(audio, rng)]
        pieces = corpus.dialogue([visual, audio], [("what?", "this")], shown)
        places = [i for i, piece in enumerate(pieces) if piece.apart]
        assert len(places) == 2 and places[1] > places[0] + 1


def test_a_part_is_kept_while_its_settings_stay_and_a_failed_one_leaves_nothing(tmp_path, monkeypatch):
    made = []

    def good(folder: Path, settings, seed):
        made.append(seed)
        (folder / "x").write_text("x")
        return {"files": 1}

    def bad(folder: Path, settings, seed):
        (folder / "half").write_text("")
        raise RuntimeError("broken")

    settings = WorldSettings(media=SMALL)
    monkeypatch.setitem(build.PARTS, "media", (good, "media"))
    build.make_part(tmp_path, "media", settings, 0)
    assert build.present(tmp_path, "media", settings, 0)["figures"] == {"files": 1}
    assert build.present(tmp_path, "media", settings, 1) is None
    assert build.present(tmp_path, "media", SCALES["small"], 0) is None
    monkeypatch.setitem(build.PARTS, "media", (bad, "media"))
    with pytest.raises(RuntimeError):
        build.make_part(tmp_path, "media", settings, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["media"] and (tmp_path / "media" / "x").exists()
    assert made == [0]


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "world")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "--out" in error and error.count("\n") == 1
