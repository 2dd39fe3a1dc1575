"""``benchmarks/calibrate_plan.py`` runs without a GPU, and what it predicts of memory holds there."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from tests import tiny


@pytest.mark.slow
def test_a_configuration(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    spec = importlib.util.spec_from_file_location("calibrate_plan", tiny.ROOT / "benchmarks" / "calibrate_plan.py")
    calibrate = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, calibrate)  # dataclasses look their module up
    spec.loader.exec_module(calibrate)
    tree = tiny.make_config(tmp_path)
    out = tmp_path / "out.json"
    command = ["--cfg-path", str(tiny.write_yaml(tmp_path, tree)), "--gpus", "2", "--steps", "1", "--out", str(out)]
    assert calibrate.main(command) == 0
    assert "GB planned" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert [(row["name"], row["samples"]) for row in rows] == [("images", 2), ("sounds", 2)]
    for row in rows:
        assert row["predicted_bytes"] == pytest.approx(row["measured_bytes"], rel=0.05)
        assert row["measured_seconds"] > 0 and row["flops"] > 0
    assert calibrate.main([*command, "--only", "nothing"]) == 1
    assert "the run has images, sounds" in capsys.readouterr().err
