"""Everything a user can get wrong gives one clear message that names the thing, and an exit status; no traceback."""

from __future__ import annotations

import json

import numpy as np
import pytest

import train
from tests import media_files, tiny
from tests.processes import Run


@pytest.fixture
def tree(tmp_path):
    return tiny.make_config(tmp_path, max_steps=2)


@pytest.fixture
def fails(tmp_path, capsys):
    """Runs a tree that must fail; returns what it said on stderr, without progress bars."""

    def run(tree, *arguments: str) -> str:
        capsys.readouterr()
        assert tiny.run(tmp_path, tree, *arguments) == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return "\n".join(line for line in said.splitlines() if line.startswith("error:"))

    return run


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("run.init_lrr", 1e-4, "run.init_lrr: unknown key; did you mean 'init_lr'?"),
        ("run.max_steps", "ten", "run.max_steps: expected int, found str 'ten'"),
        ("run.amp", "fp8", "run.amp: 'fp8' is not allowed"),
        ("run.warmup_steps", 99, "warmup_steps (99) is more than the whole run (2)"),
        ("run.lr_sched", "linear_warmup_cosin_lr", "did you mean 'linear_warmup_cosine_lr'?"),
        ("task.name", "alignmnt", "no task is called 'alignmnt'; did you mean 'alignment'?"),
        ("model.bridges.audio.encoder.name", "beast", "no encoder is called 'beast'; did you mean 'beats'?"),
        ("model.bridges.vision.perceiver.num_querys", 4, "unknown key; did you mean 'num_queries'?"),
        ("processors.image", {"name": "blip_caption"}, "'blip_caption' reads text, not media files"),
        ("datasets.images.kind", "ti-capt", "there is no task kind 'capt'"),
        ("datasets.images.kind", "tv-cap", "kind 'tv-cap' shows 'video', which needs a folder under its media"),
        ("datasets.images.batch_size", 0, "below the smallest allowed value, 1"),
        ("model.llm.path", "nowhere/vicuna", "'nowhere/vicuna' does not exist; looked for"),
        ("datasets.images.annotations", "gone.json", "datasets.images.annotations: 'gone.json' does not exist"),
        ("plugins", ["mine.py"], "plugins: 'mine.py' does not exist; looked for"),
    ],
)
def test_mistakes_in_the_yaml(tree, fails, path, value, said, tmp_path):
    *parents, last = path.split(".")
    node = tree
    for name in parents:
        node = node[name]
    node[last] = value
    assert said in fails(tree)
    assert said in fails(tree, "--check")
    assert not (tmp_path / "output").exists()


def test_all_mistakes_are_told_at_once(tree, fails):
    tree["run"]["init_lrr"] = 1
    tree["model"]["bridges"]["audio"]["encoder"]["name"] = "beast"
    said = fails(tree, "--check")
    assert "init_lrr" in said and "beast" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; an annotation file is a JSON list of entries"),
        ("[]", "holds no annotations"),
        ('{"a": 1}', "is not a JSON list"),
        ('[{"image_id": "0.jpg", "caption": "a"}', "is not valid JSON"),
        ('[{"image_id": "0.jpg", "caption": "a"}, {"image_id": "1.jpg"}]', "entry 1: lacks caption (or desc)"),
        ('[{"caption": "a"}]', "entry 0: names no image"),
    ],
)
def test_bad_annotation_files(tree, fails, tmp_path, text, said):
    file = tmp_path / "bad.json"
    file.write_text(text)
    tree["datasets"]["images"]["annotations"] = str(file)
    assert said in fails(tree, "--check") and "bad.json" in fails(tree)


def test_no_such_yaml_and_not_a_yaml(tmp_path, capsys):
    assert train.main(["--cfg-path", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: no such configuration file" in capsys.readouterr().err
    (tmp_path / "odd.yaml").write_text("run: [1, 2\nmodel: }")
    assert train.main(["--cfg-path", str(tmp_path / "odd.yaml")]) == 1
    assert "odd.yaml: cannot be read as YAML" in capsys.readouterr().err
    assert train.main(["--cfg-path", str(tmp_path / "odd.yaml"), "--options", "oops"]) == 1


BAD_MEDIA = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "not a picture": lambda path: path.write_text("<html>404</html>"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", list(BAD_MEDIA))
def test_a_bad_picture_is_replaced_and_counted(tree, tmp_path, damage):
    BAD_MEDIA[damage](tmp_path / "media" / "3.jpg")
    del tree["datasets"]["sounds"]
    tree["run"] |= {"max_steps": 3, "max_bad_share": 0.5}
    assert tiny.run(tmp_path, tree) == 0
    (row,) = tiny.json_lines(tmp_path / "output" / "ledger.jsonl")
    assert row["dataset"] == "images" and row["sample_id"] == "3.jpg" and "3.jpg" in row["file"]
    assert row["replaced_by"] != "3.jpg" and row["reason"]
    last = (tmp_path / "output" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["replaced"] == 1


def test_too_many_bad_ones_stop_the_run(tree, fails, tmp_path):
    for i in range(0, 12, 2):
        (tmp_path / "media" / f"{i}.jpg").write_bytes(b"")
    del tree["datasets"]["sounds"]
    tree["run"] |= {"max_steps": 60}
    said = fails(tree)
    assert "dataset 'images'" in said and "could not be read" in said and "max_bad_share allows 5.0%" in said


def test_all_bad_gives_up_at_once(tree, fails, tmp_path):
    for file in (tmp_path / "media").glob("*.jpg"):
        file.write_bytes(b"")
    del tree["datasets"]["sounds"]
    assert "10 samples in a row cannot be used" in fails(tree)


def test_a_caption_longer_than_the_limit_keeps_a_label(tree, tmp_path):
    entries = [{"image_id": "0.jpg", "caption": "a red picture " * 100}] * 4
    (tmp_path / "long.json").write_text(json.dumps(entries))
    del tree["datasets"]["sounds"]
    tree["datasets"]["images"]["annotations"] = str(tmp_path / "long.json")
    assert tiny.run(tmp_path, tree) == 0
    first = json.loads((tmp_path / "output" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["tokens"] == 4 * 32  # task.max_txt_len, all of it supervised


def test_a_dialogue_that_cannot_fit_is_refused_by_name(fails, tmp_path):
    tree = tiny.make_config(tmp_path, "instruction", max_steps=2)
    tree["task"]["max_txt_len"] = 9  # two media of four rows each, and hardly a word
    said = fails(tree)
    assert "sample '" in said and "does not fit into 9 positions" in said


def test_a_checkpoint_of_another_architecture(tree, fails, tmp_path):
    assert tiny.run(tmp_path, tree) == 0
    tree["model"]["bridges"]["vision"]["perceiver"]["width"] = 64
    tree["model"]["bridges"]["vision"]["perceiver"]["num_queries"] = 8
    said = fails(tree)  # resume: auto finds the checkpoint of the run before
    assert "bridges.vision.perceiver.width: 32 -> 64" in said and "bridges.vision.perceiver.num_queries: 4 -> 8" in said
    tree["run"]["resume"] = None
    tree["model"]["weights"] = [str(tmp_path / "output")]
    assert "another architecture" in fails(tree)


def test_batch_size_that_two_ranks_cannot_share(tree, tmp_path):
    tree["datasets"]["images"]["batch_size"] = 3
    run = Run(tmp_path / "output", ["--cfg-path", str(tiny.write_yaml(tmp_path, tree))], 2)
    assert run.wait() == [1, 1]
    assert "datasets.images.batch_size: 3 samples cannot be shared by 2 processes; take a multiple of 2" in run.text()


def one_dataset(tree, tmp_path, name: str, kind: str, modality: str) -> None:
    """The tree's only dataset: seven good files, and the one of that name."""
    entries = [{f"{modality}_id": f"{i}{'.mp4' if modality == 'video' else '.wav'}", "caption": "a"} for i in range(7)]
    (tmp_path / "list.json").write_text(json.dumps([*entries, {f"{modality}_id": name, "caption": "a"}]))
    media = {modality: str(tmp_path / "media")}
    tree["datasets"] = {
        "one": {"annotations": str(tmp_path / "list.json"), "kind": kind, "media": media, "batch_size": 4}
    }
    tree["run"] |= {"max_bad_share": 0.5}


def replaced(tree, tmp_path) -> dict:
    assert tiny.run(tmp_path, tree) == 0
    (row,) = tiny.json_lines(tmp_path / "output" / "ledger.jsonl")
    return row


def test_a_sound_of_zero_samples_is_replaced_and_counted(tree, tmp_path):
    media_files.write_wav(tmp_path / "media" / "none.wav", np.zeros(0, np.float32))
    one_dataset(tree, tmp_path, "none.wav", "ta-cap", "audio")
    row = replaced(tree, tmp_path)
    assert row["sample_id"] == "none.wav" and row["replaced_by"] != "none.wav"


def test_a_video_without_sound_where_sound_is_asked_for(tree, tmp_path):
    media_files.write_video(tmp_path / "media" / "mute.mp4", [10, 20, 30, 40])
    one_dataset(tree, tmp_path, "mute.mp4", "ta-cap", "audio")
    row = replaced(tree, tmp_path)
    assert row["sample_id"] == "mute.mp4" and "sound" in row["reason"]


def test_a_truncated_video_is_replaced_and_counted(tree, tmp_path):
    for i in range(7):
        media_files.write_video(tmp_path / "media" / f"{i}.mp4", [10 * i, 20, 30, 40])
    whole = media_files.write_video(tmp_path / "media" / "whole.mp4", [10, 20, 30, 40])
    broken = media_files.cut(whole, 0.6)
    one_dataset(tree, tmp_path, broken.name, "tv-cap", "video")
    row = replaced(tree, tmp_path)
    assert row["sample_id"] == broken.name and row["reason"]
