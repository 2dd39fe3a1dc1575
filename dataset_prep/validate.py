"""Read every sample of a run's datasets, or of one annotation file, as training does, and list all that is wrong.

Malformed entries (wrong types, missing keys, questions without answers, lists of different lengths), names that leave
the media folder, missing and unreadable media, samples that cannot be written in the task's number of tokens: each
with file, index and reason. The datasets are those of training, so that what passes here is read there. Exit status 0
when nothing is wrong, else 1. With --out the report is kept, and an interrupted run goes on where it stopped.

  python -m dataset_prep.validate --cfg-path train_configs/chatbridge_pretrain.yaml --json
  python -m dataset_prep.validate --annotations data/clotho/annotations.json --kind ta-cap --media data/clotho/audio
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from chatbridge.datasets import TaskKind
from dataset_prep.prep.command import add_running, options, run_command
from dataset_prep.prep.entries import media_arguments
from dataset_prep.prep.job import DROPPED, Job, json_lines
from dataset_prep.prep.validation import SampleValidator, ValidationSpec, build_target

SHOWN = 20
"""Problems printed without --json and --all."""


def specification(args: argparse.Namespace) -> ValidationSpec:
    """What the arguments ask for.

    Raises:
        ValueError: neither or both of the two forms, or a kind or folder that is wrong.
    """
    if (args.cfg_path is None) == (args.annotations is None):
        raise ValueError("give either --cfg-path CFG, or --annotations FILE --kind KIND --media DIR")
    tokenizer = "" if args.tokenizer is None else str(args.tokenizer)
    if args.cfg_path is not None:
        return ValidationSpec(cfg_path=str(args.cfg_path), overrides=tuple(args.options), tokenizer=tokenizer)
    if not args.kind:
        raise ValueError("--annotations needs --kind: what its entries are for (ti-cap, tva-conv, ta-shortqa ...)")
    media = media_arguments(args.media, TaskKind.parse_all(args.kind))
    files = {"annotations": str(args.annotations), "kind": args.kind, "media": tuple(media.items())}
    return ValidationSpec(**files, tokenizer=tokenizer)


def validate(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The report: {"ok", "entries", "good", "problems": [{"id", "reason", "detail", "where"}], "reasons", "notes"}."""
    spec = specification(args)
    build_target.cache_clear()  # the files may have changed since this process last looked
    found = build_target(spec)
    job = Job(
        name="validate",
        out=out,
        items=found.items,
        work=SampleValidator(spec),
        settings={"what": vars(spec)},
        inputs=[file for file in dict.fromkeys(found.inputs) if file.is_file()],
        total=found.total,
        listing=None,
        chunk=32,
        keeps=False,
    )
    manifest = job.run(options(args))
    problems = json_lines(out / DROPPED)
    counts = manifest["counts"]
    return {
        "ok": not problems,
        "entries": counts["read"] - sum(not p.get("where") or ": entry " not in p["where"] for p in problems),
        "good": counts["kept"],
        "reasons": manifest["reasons"],
        "problems": [_placed(problem) for problem in problems],
        "notes": found.notes,
    }


def _placed(problem: dict[str, Any]) -> dict[str, Any]:
    """A problem with its file and index apart."""
    file, entry, index = problem.pop("where", "").rpartition(": entry ")
    name, _, sample = problem.pop("id").partition(": ")
    place = {"file": file, "index": int(index)} if entry else {"file": index} if index else {}
    return {"dataset": name, **place, **({"id": sample} if sample else {}), **problem}


def print_report(report: dict[str, Any], everything: bool) -> None:
    """The report for people."""
    for note in report["notes"]:
        print(f"note: {note}")
    print(f"{report['entries']:,} entries read, {report['good']:,} without a fault")
    for reason, number in Counter(report["reasons"]).most_common():
        print(f"  {number:>9,}  {reason}")
    shown = report["problems"] if everything else report["problems"][:SHOWN]
    for problem in shown:
        place = problem.get("file", "")
        place += f": entry {problem['index']}" if "index" in problem else ""
        name = f" ({problem['id']})" if problem.get("id") else ""
        print(": ".join(part for part in (problem["dataset"], place + name, problem.get("detail", "")) if part))
    if len(shown) < len(report["problems"]):
        print(f"... and {len(report['problems']) - len(shown):,} more; --all prints every one, --json too")


def body(args: argparse.Namespace) -> int:
    if args.out is not None:
        report = validate(args, args.out)
        (args.out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = validate(args, Path(folder))
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=True))
    else:
        print_report(report, args.all)
    return 0 if report["ok"] else 1


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_prep.validate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cfg-path", type=Path, help="a run's YAML: all its datasets are read")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the YAML")
    parser.add_argument("--annotations", type=Path, help="instead, one annotation file")
    parser.add_argument("--kind", help="its task kind: ti-cap, tva-conv, ta-shortqa ...")
    parser.add_argument("--media", action="append", default=[], metavar="[MODALITY=]DIR", help="its media folders")
    parser.add_argument("--tokenizer", type=Path, help="of the language model; by default the one of the YAML")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.add_argument("--all", action="store_true", help="print every problem, not only the first")
    parser.add_argument("--out", type=Path, help="keep the report here; an interrupted run can then go on")
    add_running(parser)
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
