"""Train (or evaluate) what a YAML describes: ``torchrun --nproc_per_node=N train.py --cfg-path CFG``.

Runs with and without torchrun. Exit status 0 when all went well, 1 with one clear message when not.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.logging import setup_logging
from chatbridge.common.registry import RUNNERS
from chatbridge.planning import command as planning
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.check import check
from chatbridge.runners.verify_resume import verify_resume


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", required=True, help="the run's YAML")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys, e.g. run.seed=1")
    parser.add_argument("--check", action="store_true", help="validate everything that can be known without weights")
    parser.add_argument("--strict", action="store_true", help="stop at the first sample that cannot be read")
    parser.add_argument(
        "--verify-resume", type=int, metavar="K", help="take K steps twice, once killed and resumed, and compare"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of --verify-resume (default: 1)")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    planning.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.json and not args.plan:
        parser.error("--json prints a plan: give --plan, too")
    return args


def _ran_out_of_memory(error: Exception) -> bool:
    # What PyTorch raises on CPU has no class of its own.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    main_process = int(os.environ.get("RANK", "0")) == 0
    setup_logging(main_process)
    register_all()
    try:
        if args.plan:
            return planning.run(args) if main_process else 0
        loaded = load_config(args.cfg_path, [*args.options, *(["run.strict=true"] if args.strict else [])])
        assembly = Assembly(loaded)
        if args.check:
            return check(assembly)
        loaded.require_paths()
        if args.verify_resume is not None:
            output = Path(loaded.config.run.output_dir)
            return verify_resume(__file__, args.cfg_path, args.options, output, args.verify_resume, args.processes)
        RUNNERS.build(loaded.config.run, assembly).run()
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        if main_process:
            for line in str(error).splitlines() or [type(error).__name__]:
                print(f"error: {line}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if args.debug or not _ran_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["MemoryError"])[0]
        print(
            f"error: memory has run out ({reason}); take smaller batches; --plan tells what a run needs",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
