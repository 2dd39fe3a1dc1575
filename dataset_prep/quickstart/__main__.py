"""The whole of ChatBridge at a size that anyone can check: ``make quickstart``.

Makes the embedded world, trains stage 1 and stage 2, asks the held-out questions after each stage, and writes
``report.json``, ``report.md`` and plots. Every step is a command that can be run by hand; it is printed as it starts.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from chatbridge.common.documents import read_json
from dataset_prep.quickstart.report import write_report
from dataset_prep.quickstart.tables import runs_table, summary_table

ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = {
    "stage1": "train_configs/quickstart.yaml",
    "stage2": "instructiontuning_configs/quickstart.yaml",
}
ANSWERS = "eval_configs/quickstart.yaml"
CAPTIONS = "eval_configs/quickstart_captions.yaml"
PROCESSES = min(2, os.cpu_count() or 1)
"""Ranks of the trainings: one core each. The results are those of one process, up to rounding."""
TABLES = {"runs": runs_table, "summary": summary_table}
"""A page has a table between ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""


@dataclass(frozen=True)
class QuickstartScale:
    """Steps of either stage, where they are not those of the YAML."""

    steps: dict[str, int] = field(default_factory=dict)

    def options(self, stage: str) -> list[str]:
        """Overrides for ``train.py``."""
        return [f"run.max_steps={self.steps[stage]}"] if stage in self.steps else []


SCALES = {"small": QuickstartScale(), "tiny": QuickstartScale({"stage1": 70, "stage2": 60})}


@dataclass
class PhaseMeter:
    """Wall seconds of every phase, and the most memory that all processes below this one held at a time."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> PhaseMeter:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.25):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it ended in the meantime
                    continue
            self.peak_rss = max(self.peak_rss, total)

    def phase(self, name: str, *commands: list[str]) -> None:
        """Run commands side by side and note how long it took. Raises SystemExit when one of them fails."""
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        running = []
        for command in commands:
            print("   " + shlex.join(["python", *command]), flush=True)
            running.append(subprocess.Popen([sys.executable, *command], cwd=ROOT))
        codes = [process.wait() for process in running]
        self.seconds[name] = round(time.perf_counter() - started, 1)
        if any(codes):
            raise SystemExit(f"error: '{name}' failed; see above")


def train_command(config: str, options: list[str], processes: int = 1) -> list[str]:
    """The command line of ``train.py``, by torchrun for several processes; without the interpreter."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [*launcher, "train.py", "--cfg-path", config, "--options", *options]


def run_seed(meter: PhaseMeter, out: Path, world: Path, seed: int, scale: QuickstartScale) -> None:
    """Both stages and their questions for one seed of the bridges; the report goes to `out`."""
    common = [f"paths.world={world}", f"run.seed={seed}"]
    for stage, config in STAGES.items():
        options = [*common, f"run.output_dir={out / stage}", *scale.options(stage)]
        if stage == "stage2":
            options.append(f"paths.stage1={out / 'stage1'}")
        meter.phase(stage, train_command(config, options, PROCESSES))
        asking = [*common, f"paths.checkpoint={out / stage}"]
        answers = [*asking, f"run.output_dir={out / f'{stage}_answers'}"]
        if stage == "stage1":  # both together are asked about after stage 2
            answers.append("run.only=[test_*]")
        captions = [*asking, f"run.output_dir={out / f'{stage}_captions'}"]
        if stage == "stage1":
            meter.phase(f"{stage}_questions", train_command(ANSWERS, answers), train_command(CAPTIONS, captions))
        else:  # one after the other: a third process would want another gigabyte
            meter.phase(f"{stage}_questions", train_command(ANSWERS, answers, PROCESSES))
            meter.phase(f"{stage}_captions", train_command(CAPTIONS, captions))


def processor_of(run: Path) -> str:
    """The instructions that a training ran with, as PyTorch names them: "AVX2", "AVX512", "DEFAULT"."""
    return read_json(run / "run.json")["versions"]["cpu_capability"]


def update_page(page: Path, reports: list[Path]) -> None:
    """Write the tables of a page anew, between their marks. Raises SystemExit when it has none."""
    text = page.read_text(encoding="utf-8")
    found = [name for name in TABLES if f"<!-- {name} -->" in text and f"<!-- end of {name} -->" in text]
    if not found:
        raise SystemExit(f"error: {page} has no lines '<!-- runs -->' and '<!-- end of runs -->' to write between")
    for name in found:
        before, mark, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        text = f"{before}{mark}\n\n{TABLES[name](reports)}\n\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "quickstart", help="the report's folder")
    parser.add_argument("--seed", type=int, action="append", help="of the bridges; give it again for further seeds")
    parser.add_argument("--world-seed", type=int, default=0, help="of the embedded world, its LLM and its encoders")
    parser.add_argument("--scale", choices=sorted(SCALES), default="small", help="tiny: for tests, learns less")
    parser.add_argument("--table", type=Path, action="append", default=[], help="a page whose tables are written anew")
    parser.add_argument(
        "--beside", type=Path, action="append", default=[], metavar="REPORT", help="report.json of a run made before"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    seeds = args.seed or [42]
    world, scale = (args.out / "world").resolve(), SCALES[args.scale]
    reports = list(args.beside)
    for seed in seeds:
        out = (args.out if seed == seeds[0] else args.out / f"seed{seed}").resolve()
        started = time.perf_counter()
        with PhaseMeter() as meter:
            make = ["-m", "dataset_prep.world", "--out", str(world), "--seed", str(args.world_seed)]
            meter.phase("world", [*make, "--scale", args.scale])
            for stage in STAGES:  # a quickstart starts afresh: what an earlier one left is not resumed
                shutil.rmtree(out / stage, ignore_errors=True)
            run_seed(meter, out, world, seed, scale)
        total = round(time.perf_counter() - started, 1)
        processor = processor_of(out / "stage2")
        write_report(out, {
            "seed": seed,
            "settings": {"scale": args.scale, "world_seed": args.world_seed, "processor": processor},
            "wall_seconds": {**meter.seconds, "total": total},
            "peak_rss_bytes": meter.peak_rss,
        })  # fmt: skip
        reports.append(out / "report.json")
        print(f"\nreport: {out / 'report.md'} (and report.json, plots beside it)", flush=True)
    for page in args.table:
        update_page(page, reports)
    return 0


if __name__ == "__main__":
    sys.exit(main())
