"""Make the embedded world.

python -m dataset_prep.world --out data/world --seed 0
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dataset_prep.world.build import build
from dataset_prep.world.settings import SCALES


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dataset_prep.world", description="Make the embedded world.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make the world in")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another world")
    parser.add_argument("--scale", choices=sorted(SCALES), default="small", help="tiny: for tests, learns little")
    args = parser.parse_args(argv)
    try:
        summary = build(args.out, SCALES[args.scale], args.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
