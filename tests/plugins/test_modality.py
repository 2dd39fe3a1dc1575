"""The measure of the architecture: a fourth modality costs one file and one YAML, and nothing inside the package."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import train
from chatbridge.common.checkpoint import find_latest, load_weights
from chatbridge.common.registry import ENCODERS
from tests import tiny

PLUGIN = tiny.ROOT / "tests" / "plugins" / "thermal_camera.py"


def write_heat_maps(folder) -> str:
    folder.mkdir()
    entries = []
    for i in range(12):
        word = ("blue", "red")[i % 2]
        np.save(folder / f"{i}.npy", np.full((16, 16), (-2.0, 2.0)[i % 2], np.float32))
        turns = [{"from": "human", "value": "Is it red or blue?"}, {"from": "gpt", "value": word}]
        entries.append({"thermal_id": f"{i}.npy", "caption": f"it is {word}", "conversations": turns})
    (folder / "list.json").write_text(json.dumps(entries))
    return str(folder / "list.json")


@pytest.mark.slow
def test_plan_train_checkpoint_and_ask_about_a_modality_from_outside(tmp_path, run_plan):
    maps = tmp_path / "maps"
    data = {"annotations": write_heat_maps(maps), "media": {"thermal": str(maps)}, "batch_size": 6}
    tree = tiny.make_config(tmp_path, "instruction", max_steps=200, init_lr=5e-3, log_every=50)
    tree |= {
        "plugins": [str(PLUGIN)],
        "processors": {"thermal": {"name": "thermal"}},
        "datasets": {"heat": data | {"kind": "thermal-conv"}},
    }
    perceiver = dict(tiny.PERCEIVER)
    tree["model"]["bridges"] = {
        "heat": {"modalities": ["thermal"], "encoder": {"name": "thermal_patches"}, "perceiver": perceiver}
    }
    tree["model"]["bridges"]["heat"]["projection_scale"] = "auto"
    status, told = run_plan(tree)
    assert status == 0 and told["steps"]["heat"]["flops_per_rank"]["bridges.heat.encoder"]["forward"] > 0
    assert tiny.run(tmp_path, tree) == 0
    folder = find_latest(tmp_path / "output")
    assert any(name.startswith("bridges.heat.") for name in load_weights(folder))

    del tree["datasets"]
    tree["model"]["weights"] = [str(folder)]
    tree["validation"] = {"heat": data | {"kind": "thermal-conv", "conditions": ["full", "no_heat"]}}
    tree["run"] = {"runner": "evaluation", "output_dir": str(tmp_path / "asked"), "device": "cpu", "max_new_tokens": 8}
    tree["run"]["conditions"] = {"no_heat": {"blank": ["thermal"]}}
    assert tiny.run(tmp_path, tree) == 0
    scores = json.loads((tmp_path / "asked" / "scores.json").read_text())["heat"]
    assert scores["full"][""]["n"] == 12
    assert scores["full"][""]["value"] == 1.0  # two maps, two words: it can only be read off the map
    assert scores["no_heat"][""]["value"] <= 0.5


WITH_WEIGHTS = """
from dataclasses import dataclass

import torch

from chatbridge.common.registry import ENCODERS
from chatbridge.common.schema import key


@dataclass(kw_only=True)
class Config:
    width: int = key(32, help="width of a token")
    weights: str | None = key(None, help="weight file", path=True)


@ENCODERS.register("weighed_patches", config=Config)
class Encoder(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.width = config.width
        self.patches = torch.nn.Conv2d(3, config.width, 14, stride=14)
        if config.weights is not None:
            self.load_state_dict(torch.load(config.weights))

    def forward(self, images):
        return self.patches(images).flatten(2).transpose(1, 2)
"""


def test_weights_that_are_not_an_encoders_are_told_before_a_run_too(tmp_path, capsys):
    """The package knows nothing of how an encoder from outside reads its file; `--check` tries."""
    (tmp_path / "weighed.py").write_text(WITH_WEIGHTS)
    for name, width in (("right.pth", 32), ("other.pth", 16)):
        torch.save(torch.nn.Conv2d(3, width, 14, stride=14).state_dict(), tmp_path / name)
        renamed = {f"patches.{n}": t for n, t in torch.load(tmp_path / name).items()}
        torch.save(renamed, tmp_path / name)
    tree = tiny.make_config(tmp_path, max_steps=1)
    tree["plugins"] = [str(tmp_path / "weighed.py")]
    for name, status in (("right.pth", 0), ("other.pth", 1)):
        tree["model"]["bridges"]["vision"]["encoder"] = {"name": "weighed_patches", "weights": str(tmp_path / name)}
        yaml = str(tiny.write_yaml(tmp_path, tree))
        for more in ([], ["--check"]):
            assert train.main(["--cfg-path", yaml, *more]) == status
            said = capsys.readouterr().err
            assert status == 0 or ("other.pth" in said and "size mismatch" in said and said.count("error:") == 1)


def test_weights_of_the_packages_own_encoders_are_told_before_a_run_too(tmp_path, capsys):
    tree = tiny.make_config(tmp_path)
    for name in ("vision", "audio"):
        settings = dict(tree["model"]["bridges"][name]["encoder"])
        entry = ENCODERS.get(settings.pop("name"))
        torch.save(entry.target(entry.config(**settings)).state_dict(), tmp_path / f"{name}.pth")
    yaml_of = lambda name: str(tiny.write_yaml(tmp_path, tree, name))  # noqa: E731
    tree["model"]["bridges"]["vision"]["encoder"]["weights"] = str(tmp_path / "vision.pth")
    assert train.main(["--cfg-path", yaml_of("right.yaml"), "--check"]) == 0
    tree["model"]["bridges"]["vision"]["encoder"]["weights"] = str(tmp_path / "audio.pth")
    capsys.readouterr()
    assert train.main(["--cfg-path", yaml_of("wrong.yaml"), "--check"]) == 1
    assert "model.bridges.vision.encoder.weights: 'TMP/audio.pth' is a BEATs audio encoder, not a vision encoder" in (
        capsys.readouterr().err.replace(str(tmp_path), "TMP"))  # fmt: skip
