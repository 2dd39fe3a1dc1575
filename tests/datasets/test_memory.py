"""300,000 captions and four workers take the memory of one copy, and no more as time goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.patience import PATIENCE

pytestmark = pytest.mark.slow

COUNT = 300_000
PROGRAM = (
    "import json, sys; from tests.datasets.tools import memory_report as m; print(json.dumps(m(*sys.argv[1:], 4)))"
)


def write_list(file: Path, count: int) -> None:
    words = "a grey cat sits on the edge of a stone wall and looks at the birds above"
    with file.open("w") as out:
        out.writelines(
            f'{{"image_id": "{i:08d}.jpg", "caption": "{words} number {i}"}}\n' for i in range(count)
        )  # fmt: skip


def has_account() -> bool:
    file = Path("/proc/self/smaps_rollup")
    return file.exists() and "Pss_Anon:" in file.read_text()


@pytest.mark.skipif(not has_account(), reason="needs Linux' account of shared pages")
def test_four_workers_share_one_copy(tmp_path):
    """Memory of a process with four workers that went through a large list, less that of the same with a tiny list."""
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    write_list(small, 100)
    write_list(large, COUNT)
    command = [sys.executable, "-c", PROGRAM, str(small), str(large)]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    one, passes = found["one"], found["all"]
    assert large.stat().st_size < one < 2 * large.stat().st_size  # the measure sees the mapped file
    assert max(passes) < 1.2 * one, f"{[p / one for p in passes]} times one copy of {one / 2**20:.0f} MiB"
    assert passes[-1] < passes[1] + 0.05 * one  # it does not grow from pass to pass
