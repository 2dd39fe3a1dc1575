"""The quickstart, shortened: the whole way from nothing to the report, through the commands that users run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.tiny import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, "-m", "dataset_prep.quickstart", "--out", str(out), "--scale", "tiny", "--seed", "42"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return out, json.loads((out / "report.json").read_text())


def test_the_report_is_complete(report):
    out, figures = report
    assert set(figures["wall_seconds"]) >= {
        "world",
        "stage1",
        "stage1_questions",
        "stage2",
        "stage2_questions",
        "total",
    }
    assert 0 < figures["peak_rss_bytes"] < 4 * 2**30
    for condition in ("full", "no_audio", "no_visual", "shuffled_audio", "shuffled_visual", "blind"):
        for family in ("match", "two_attributes", "caption_both"):
            cell = figures["joint"][condition][family]
            assert cell["n"] > 0 and cell["ci95"][0] <= cell["value"] <= cell["ci95"][1]
    for stage in ("stage1", "stage2"):
        for modality in ("image", "video", "audio"):
            assert {"caption", "qa"} <= figures["single"][stage][modality].keys()
    assert {"report.md", "report.json"} <= {p.name for p in out.iterdir()}
    assert len(list(out.glob("*.png"))) >= 3


def test_modalities_met(report):
    """Low bars, for a few hundred media and steps: what needs both is answered with both."""
    _, figures = report
    joint = {c: {f: cell["value"] for f, cell in families.items()} for c, families in figures["joint"].items()}
    assert joint["full"]["two_attributes"] >= 0.4
    for ablated in ("no_audio", "no_visual", "shuffled_audio", "shuffled_visual", "blind"):
        assert joint["full"]["two_attributes"] > joint[ablated]["two_attributes"]
    assert figures["single"]["stage1"]["audio"]["caption"]["value"] >= 0.5


def test_a_second_run_makes_the_world_only_once(report):
    out, _ = report
    stamps = {p: p.stat().st_mtime_ns for p in (out / "world").rglob("stamp.json")}
    assert stamps
    from dataset_prep.world.__main__ import main

    assert main(["--out", str(out / "world"), "--seed", "0", "--scale", "tiny"]) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
