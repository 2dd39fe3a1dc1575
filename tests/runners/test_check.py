"""What would make a run fail is found by --check, with the key, before anything is built or written."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from chatbridge.common.registry import ENCODERS
from tests import tiny


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Trees that run, over the same files: captions, dialogues, and questions about them."""
    folder = tmp_path_factory.mktemp("check")
    captions = tiny.make_config(folder, max_steps=2)
    chats = tiny.make_config(folder, "instruction", max_steps=2)
    asked = copy.deepcopy(captions)
    asked["validation"] = asked.pop("datasets")
    asked["run"] = {"runner": "evaluation", "output_dir": str(folder / "asked"), "device": "cpu"}
    asked["run"]["conditions"] = {"blind": {"blind": True}, "silent": {"blank": ["audio"]}}
    return {"captions": captions, "chats": chats, "asked": asked}


@pytest.fixture
def check(tmp_path, capsys):
    def run(tree: dict, *more: str) -> tuple[int, str]:
        tree["run"].setdefault("output_dir", str(tmp_path / "out"))
        capsys.readouterr()
        status = tiny.run(tmp_path, tree, "--check", *more)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return status, "\n".join(line for line in said.splitlines() if line.startswith("error: "))

    return run


def put(tree: dict, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value


def test_trees_that_run_are_right(parts, check):
    for tree in parts.values():
        assert check(copy.deepcopy(tree)) == (0, "")


VISION, AUDIO = "model.bridges.vision", "model.bridges.audio"

WRONG = [
    # Media that the encoder cannot take.
    ({"processors.image.image_size": 56}, "processors.image gives, [3, 56, 56] a frame or clip: image_size is 28"),
    ({"datasets.images.processors": {"image": {"name": "image"}}}, "datasets.images.processors.image gives"),
    ({"processors.audio.frames_per_clip": 8}, "processors.audio gives, [8, 64]"),
    ({"processors.audio.clips": 3, f"{AUDIO}.temporal_positions": 2}, "raise temporal_positions"),
    ({"processors.image.mean": [0.5, 0.5]}, "processors.image: mean and std need three values"),
    ({"processors.image.std": [0, 1, 1]}, "processors.image.std[0]: 0 is below"),
    ({"processors": {"image": {"name": "image", "image_size": 28}}}, "shows 'audio', which needs a processor"),
    (
        {"datasets.images.processors": {"image": {"name": "caption_text"}}},
        "processors.image: 'caption_text' reads",
    ),
    # Sizes that do not go together.
    ({f"{VISION}.perceiver.heads": 3}, "vision.perceiver: width 32 is not a multiple of heads 3"),
    ({f"{VISION}.encoder.heads": 3}, "vision.encoder: width 32 is not a multiple of heads 3"),
    ({f"{VISION}.encoder.patch_size": 13}, "image_size 28 is not a multiple of patch_size 13"),
    ({f"{AUDIO}.encoder.conv_pos_groups": 3}, "is not a multiple of conv_pos_groups 3"),
    ({f"{AUDIO}.encoder.max_distance": 80}, "max_distance 80 must be above a quarter of num_buckets 320"),
    ({"model.share_perceivers": True, f"{AUDIO}.perceiver.layers": 3}, "model.share_perceivers: perceivers of audio"),
    ({"model.bridges": {}}, "model.bridges is empty"),
    ({f"{AUDIO}.modalities": ["audio", "image"]}, "bridges 'vision' and 'audio' both serve 'image'"),
    (
        {"model.bridges.keys": {"modalities": ["audio"], "encoder": {"name": "beats"}}},
        "bridge 'keys': take another name",
    ),
    ({f"{VISION}.encoder.depth": 10**9}, "encoder.depth: 1000000000 is above the largest allowed value"),
    # Numbers that a library refuses, or that take all memory.
    ({"run.seed": -1}, "run.seed: -1 is below"),
    ({"run.seed": 2**31}, "run.seed: 2147483648 is above"),
    ({"run.seed": 2**64}, "run.seed: 18446744073709551616 is above"),
    ({"run.max_steps": 10**18}, "max_steps, or max_epoch x iters_per_epoch: 1,000,000,000,000,000,000 steps"),
    ({"run.accum_grad_iters": 10**9}, "accum_grad_iters"),
    ({"run.betas": [2, 2]}, "betas: two numbers from 0 to below 1 are needed, found [2.0, 2.0]"),
    ({"run.betas": [0.9, 1]}, "betas"),
    ({"run.betas": [-0.1, 0.9]}, "run.betas[0]: -0.1 is below"),
    ({"run.init_lr": float("nan")}, "run.init_lr: nan is not a finite number"),
    ({"run.init_lr": 1e308}, "run.init_lr: 1e+308 is above"),
    ({"run.hang_seconds": 1e300}, "run.hang_seconds: 1e+300 is above"),
    ({"run.hang_seconds": 1e-6}, "hang_seconds: 1e-06 s is less than a step takes; 0 never gives up"),
    ({"run.num_workers": 10**6}, "run.num_workers: 1000000 is above"),
    ({"run.threads": 10**6}, "run.threads: 1000000 is above"),
    ({"processors.audio.sample_rate": 10**9}, "sample_rate: 1000000000 is above"),
    # Names that nothing has.
    ({"run.compile": "inducktor"}, "run.compile: no backend is called 'inducktor'; did you mean 'inductor'?"),
    ({"model.llm.attention": "sdpaa"}, "model.llm: attention: no implementation is called 'sdpaa'"),
    # Data.
    ({"datasets": {}}, "the mixture has no dataset"),
    ({"datasets.images.weight": 0, "datasets.sounds.weight": 0}, "weights must not be negative, and one at least"),
    ({"datasets.images.media.image": "EMPTY"}, "datasets.images: not one of 8 samples tried can be used; the first: "),
    ({"datasets.images.batch_tokens": 10, "datasets.images.pack": 20}, "datasets.images: pack (20) is more than"),
    ({"datasets.images.pack": 3}, "datasets.images: not one of 8 samples tried can be used"),
    ({"datasets.images.batch_tokens": 3}, "more than the 3 of a row or batch; raise pack or batch_tokens"),
    # Places.
    ({"run.output_dir": "FILE"}, "is no folder"),
    ({"run.output_dir": "FILE/below"}, "is no folder"),
    ({"run.output_dir": "n" * 300}, "a name in it has more than 255 bytes"),
    ({"run.output_dir": "new/" + "n" * 300}, "a name in it has more than 255 bytes"),
    ({"run.output_dir": "LINK"}, "is a link to nowhere"),
    ({"run.resume": "nowhere"}, "nowhere: no checkpoint here"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[" ".join(changes)[:60] for changes, _ in WRONG])
def test_what_would_fail_in_training(parts, check, tmp_path, changes, said):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    places = {name.upper(): str(tmp_path / name) for name in ("file", "empty", "link")}
    tree = copy.deepcopy(parts["captions"])
    for path, value in changes.items():
        if isinstance(value, str):
            first, slash, rest = value.partition("/")
            value = places.get(first, first) + slash + rest
        put(tree, path, copy.deepcopy(value))
    before = sorted(tmp_path.rglob("*"))
    status, told = check(tree)
    assert status == 1 and said in told
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "run.yaml"] == before


QUESTIONS = [
    ({"validation.images.conditions": ["blind"]}, "validation.images.conditions: 'blind' is blind, and shows no media"),
    ({"validation.images.conditions": ["bland"]}, "validation.images.conditions: no 'bland' in run.conditions"),
    ({"run.conditions": {"odd": {"blank": ["imgae"]}}}, "run.conditions.odd: no bridge serves 'imgae'; did you mean"),
    ({"run.conditions": {"odd": {"shuffle": ["radar"]}}}, "run.conditions.odd: no bridge serves 'radar'"),
    ({"run.only": ["picture*"]}, "run.only: ['picture*'] matches no set under validation: images, sounds"),
    ({"validation": {}}, "an evaluation needs questions"),
    ({"run.num_beams": 10**6}, "run.num_beams: 1000000 is above"),
]


@pytest.mark.parametrize(("changes", "said"), QUESTIONS)
def test_what_would_fail_in_evaluation(parts, check, capsys, tmp_path, changes, said):
    tree = copy.deepcopy(parts["asked"])
    for path, value in changes.items():
        put(tree, path, copy.deepcopy(value))
    status, told = check(tree)
    assert status == 1 and said in told
    assert train.main(["--cfg-path", str(tmp_path / "run.yaml")]) == 1  # and the run says the same, before it begins
    assert said in capsys.readouterr().err and not Path(tree["run"]["output_dir"]).exists()


def test_a_dialogue_that_cannot_fit(parts, check):
    tree = copy.deepcopy(parts["chats"])
    tree["task"]["max_txt_len"] = 9
    status, told = check(tree)
    assert status == 1 and "datasets.chats: not one of 8" in told and "does not fit into 9 positions" in told


@pytest.mark.parametrize(("library", "path", "value"), [("flash_attn", "model.llm.attention", "flash_attention_2")])
def test_what_is_not_installed(parts, check, library, path, value):
    if importlib.util.find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    tree = copy.deepcopy(parts["captions"])
    put(tree, path, value)
    status, told = check(tree)
    assert status == 1 and "FlashAttention2" in told


@pytest.mark.parametrize(("sink", "said"), [("wandb", "run.loggers names wandb, which is not installed")])
def test_a_logger_that_is_not_installed(parts, check, monkeypatch, sink, said):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == sink else find(name))
    tree = copy.deepcopy(parts["captions"])
    tree["run"]["loggers"] = [sink]
    assert check(tree) == (1, f"error: {said}: pip install {sink}")


def test_half_of_a_configuration_that_is_still_to_be_fetched(parts, check, tmp_path):
    tree = copy.deepcopy(parts["captions"])
    tree["paths"] = {"root": str(tmp_path / "absent")}
    tree["model"]["llm"]["path"] = "${paths.root}/llm"
    tree["datasets"]["images"]["annotations"] = "${paths.root}/list.json"
    assert check(copy.deepcopy(tree)) == (0, "")
    tree["processors"]["image"]["image_size"] = 56
    tree["datasets"]["images"]["kind"] = "ti-cap%ti-conv"
    tree["model"]["share_perceivers"] = True
    tree["model"]["bridges"]["audio"]["perceiver"]["dropout"] = 0.5
    status, told = check(tree)
    assert status == 1 and "the alignment task reads captions, not 'ti-conv'" in told and "share_perceivers" in told
    tree["datasets"]["images"]["kind"] = "ti-cap"
    assert "image_size is 28" in check(tree)[1]


def test_a_part_of_ones_own_that_needs_numbers_is_not_judged(parts, check, monkeypatch):
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS._entries))
    config = ENCODERS.get("eva_vit").config

    class Own(nn.Module):
        width = 8

        def __init__(self, _):
            super().__init__()
            if float(torch.ones(1).sum()) != 1:  # a tensor on the meta device cannot say
                raise AssertionError

    Config = type("OwnConfig", (config,), {"__module__": __name__})
    ENCODERS.register("own", config=Config)(Own)
    tree = copy.deepcopy(parts["captions"])
    tree["model"]["bridges"]["vision"]["encoder"] = {"name": "own", "heads": 4, "width": 32}
    assert check(tree) == (0, "")


def test_every_problem_is_told_once(parts, check):
    tree = copy.deepcopy(parts["captions"])
    tree["processors"]["image"]["image_size"] = 56
    tree["datasets"]["more"] = copy.deepcopy(tree["datasets"]["images"])
    status, told = check(tree)
    assert status == 1 and told.count("image_size is 28") == 1 and len(told.splitlines()) == 1


def test_a_plan_says_what_a_check_says(parts, tmp_path, capsys):
    tree = copy.deepcopy(parts["captions"])
    tree["run"] |= {"betas": [0.9, 0.999], "compile": "inducktor", "output_dir": "/dev/null/out"}
    tree["datasets"]["images"]["weight"] = tree["datasets"]["sounds"]["weight"] = 0
    status = tiny.run(tmp_path, tree, "--plan", "--json")
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert status == 1
    for said in ("no backend is called 'inducktor'", "/dev/null is no folder", "weights must not be negative"):
        assert sum(said in line for line in problems) == 1
