"""The measure of the architecture: a fourth modality costs one file and one YAML, and nothing inside the package."""

from __future__ import annotations

import json

import numpy as np

import train
from chatbridge.common.checkpoint import find_latest, load_weights
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


def test_train_checkpoint_and_ask_about_a_modality_from_outside(tmp_path):
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
    assert train.main(["--cfg-path", str(tiny.write_yaml(tmp_path, tree))]) == 0
    folder = find_latest(tmp_path / "output")
    assert any(name.startswith("bridges.heat.") for name in load_weights(folder))

    del tree["datasets"]
    tree["model"]["weights"] = [str(folder)]
    tree["validation"] = {"heat": data | {"kind": "thermal-conv", "conditions": ["full", "no_heat"]}}
    tree["run"] = {"runner": "evaluation", "output_dir": str(tmp_path / "asked"), "device": "cpu", "max_new_tokens": 8}
    tree["run"]["conditions"] = {"no_heat": {"blank": ["thermal"]}}
    assert train.main(["--cfg-path", str(tiny.write_yaml(tmp_path, tree, "ask.yaml"))]) == 0
    scores = json.loads((tmp_path / "asked" / "scores.json").read_text())["heat"]
    assert scores["full"][""]["n"] == 12
    assert scores["full"][""]["value"] == 1.0  # two maps, two words: it can only be read off the map
    assert scores["no_heat"][""]["value"] <= 0.5
