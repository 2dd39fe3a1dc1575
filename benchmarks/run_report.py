"""What ``report.html`` costs a run: the first look at its files, and every refresh after that.

    python -m benchmarks.run_report --lines 200000

Writes a metrics.jsonl with every key that a run logs, four datasets and four components into a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from chatbridge.report import RunReport

DATASETS, PARTS = ("laion", "webvid", "audioset", "freesound"), ("vision.perceiver", "vision.projection", "audio", "b")


def row(step: int, rng: random.Random) -> dict[str, Any]:
    name, loss = rng.choice(DATASETS), 1 + rng.random()
    rates = ("lr", "grad_norm", "tokens_per_second", "samples_per_second", "tflops", "peak_share", "step_seconds")
    shares = ("data_seconds", "data_share", "memory_gb")
    return {
        "step": step, "split": "train", "loss": loss, "dataset": name, "losses": {name: loss},
        "grad_norms": {part: rng.random() for part in PARTS}, "tokens": 4096, "samples": 256, "replaced": step // 1000,
        "skipped": 0, "drawn": dict.fromkeys(DATASETS, 64 * step), **{key: rng.random() for key in rates + shares},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=200_000, help="logged steps [200000]")
    lines, rng = parser.parse_args().lines, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "metrics.jsonl"
        with file.open("w") as out:
            out.writelines(json.dumps(row(step, rng)) + "\n" for step in range(1, lines + 1))
        report, seconds = RunReport(Path(folder)), []
        for look in range(6):
            started = time.process_time()
            page = report.write()
            seconds.append(time.process_time() - started)
            with file.open("a") as out:
                out.writelines(json.dumps(row(lines + 20 * look + i, rng)) + "\n" for i in range(1, 21))
        print(
            f"{lines:,} lines, {file.stat().st_size / 1e6:.0f} MB: processor time first {seconds[0]:.2f} s, "
            f"then {median(seconds[1:]):.2f} s each with 20 lines more; page {page.stat().st_size / 1e6:.2f} MB"
        )


if __name__ == "__main__":
    main()
