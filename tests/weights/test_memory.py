"""Host memory while a language model is loaded, measured in a process of its own by the benchmark script."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.patience import PATIENCE
from tests.tiny import ROOT


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--sparse", "--dtype", "bfloat16"],  # a plain load would hold both precisions
        ["--container", "bin", "--dtype", "bfloat16"],
    ],
    ids=["safetensors", "bin"],
)
def test_no_second_copy(arguments):
    """A LLaMA of 421 MB with tensors of 8 MB at most: the peak is the model and a window of the file."""
    command = [sys.executable, str(ROOT / "benchmarks" / "load_weights.py"), "--vocabulary", "4000", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["model_mb"] == pytest.approx(421.2, abs=0.1) and figures["finite"]
    assert figures["ratio"] <= 1.15, figures
