"""``train.py --plan``: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields

from chatbridge.common.devices import DEVICES
from chatbridge.planning.placement import STRATEGIES
from chatbridge.planning.report import to_json, to_text
from chatbridge.planning.run_plan import GPUS_ELSEWHERE, PlanOptions, plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a plan, in a group of their own."""
    group = parser.add_argument_group("planning (docs/planning.md)")
    group.add_argument("--plan", action="store_true", help="print what the run would take, and all that is wrong")
    group.add_argument("--json", action="store_true", help="print the plan as JSON")
    usual = PlanOptions()
    group.add_argument("--device", default=usual.device, choices=list(DEVICES), help="the GPU (default: %(default)s)")
    group.add_argument("--gpus", type=int, metavar="N", help=f"per node; default: those here, else {GPUS_ELSEWHERE}")
    group.add_argument("--nodes", type=int, default=usual.nodes, metavar="N", help="default: %(default)s")
    group.add_argument("--tflops", type=float, metavar="X", help="half-precision dense peak, instead of the device's")
    group.add_argument("--memory-gb", type=float, metavar="X", help="memory, instead of the device's")
    group.add_argument("--utilisation", type=float, metavar="X", help="share of the peak that a step reaches, 0 to 1")
    group.add_argument("--strategy", choices=STRATEGIES, help="default: run.strategy where there is one, else ddp")
    group.add_argument("--link-gbs", type=float, metavar="X", help="GB/s that a GPU receives from others of its node")
    group.add_argument("--network-gbs", type=float, metavar="X", help="GB/s that a node receives over the network")
    group.add_argument("--host-gbs", type=float, metavar="X", help="GB/s that a GPU receives from host memory")
    group.add_argument("--llm", metavar="NAME", help="architecture of a language model whose folder is not there")
    group.add_argument("--samples", type=int, default=usual.samples, metavar="N", help="shown of each dataset")
    group.add_argument(
        "--probe", type=int, default=usual.probe, metavar="N", help="items tried of each dataset, those shown at least"
    )


def run(args: argparse.Namespace) -> int:
    """Plan what the arguments say and print it; 0 when the run could start now, else 1.

    Raises:
        ValueError: for options that make no sense.
    """
    options = PlanOptions(**{option.name: getattr(args, option.name) for option in fields(PlanOptions)})
    result = plan(args.cfg_path, options, args.options)
    if args.json:
        json.dump(to_json(result), sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        print(to_text(result))
    return 0 if result.ok else 1
