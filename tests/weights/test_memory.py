"""Host memory while a language model is loaded, measured in a process of its own by the benchmark script."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import load_weights
from tests.tiny import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--sparse", "--dtype", "bfloat16"],  # a plain load would hold both precisions
        ["--container", "bin", "--dtype", "bfloat16"],
    ],
    ids=["safetensors", "bin"],
)
def test_no_second_copy(arguments, capsys, monkeypatch):
    """A LLaMA of 421 MB with tensors of 8 MB at most: the peak is the model and a window of the file."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert load_weights.main(["--vocabulary", "4000", *arguments]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["model_mb"] == pytest.approx(421.2, abs=0.1) and figures["finite"]
    assert figures["ratio"] <= 1.15, figures
