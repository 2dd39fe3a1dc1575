"""``benchmarks/calibrate_plan.py`` runs without a GPU, and what it predicts of memory holds there."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def calibrate():
    file = tiny.ROOT / "benchmarks" / "calibrate_plan.py"
    spec = importlib.util.spec_from_file_location("calibrate_plan", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def rows_of(file):
    return json.loads(file.read_text())["rows"]


def test_a_toy_model(calibrate, tmp_path, capsys):
    assert calibrate.main(["--tiny", "--steps", "1", "--out", str(tmp_path / "out.json")]) == 0
    assert "GB planned" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out.json")
    assert [row["name"] for row in rows] == ["image", "video", "audio"]
    for row in rows:
        assert row["predicted_bytes"] == pytest.approx(row["measured_bytes"], rel=0.05)
        assert row["measured_seconds"] > 0 and row["flops"] > 0


def test_a_configuration(calibrate, tmp_path, capsys):
    tree = tiny.make_config(tmp_path)
    out = tmp_path / "out.json"
    command = ["--cfg-path", str(tiny.write_yaml(tmp_path, tree)), "--gpus", "2", "--steps", "1", "--out", str(out)]
    calibrate.main(command)
    rows = rows_of(out)
    assert [(row["name"], row["samples"]) for row in rows] == [("images", 2), ("sounds", 2)]
    for row in rows:
        assert row["predicted_bytes"] == pytest.approx(row["measured_bytes"], rel=0.15)
    calibrate.main([*command, "--only", "sounds"])
    assert [row["name"] for row in rows_of(out)] == ["sounds"]
    capsys.readouterr()
    assert calibrate.main([*command, "--only", "nothing"]) == 1
    assert "the run has images, sounds" in capsys.readouterr().err
