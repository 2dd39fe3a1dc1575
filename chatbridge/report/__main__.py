"""A training run on one page, or several compared: ``python -m chatbridge.report RUN [RUN ...]``.

Exit status 0 when the page is written, 1 with one clear line when it is not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from chatbridge.common.documents import write_whole
from chatbridge.report.compare import differences, names_of, render_comparison, rows_of
from chatbridge.report.figures import Figures
from chatbridge.report.page import render
from chatbridge.report.run import Run
from chatbridge.report.writing import NAME

COMPARISON = "comparison.html"
WIDEST = 48


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chatbridge.report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder (run.output_dir)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help=f"the page [RUN/{NAME} for one run, {COMPARISON} here for several]",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the figures unrounded instead of a table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        _report(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _report(args: argparse.Namespace) -> None:
    names = names_of(args.runs)
    runs, now = [Run.read(folder) for folder in args.runs], datetime.now(timezone.utc)
    if len(runs) == 1:
        file, text = args.output or args.runs[0] / NAME, render(runs[0], now)
    else:
        file, text = args.output or Path(COMPARISON), render_comparison(runs, names, now)
    write_whole(file, text)
    figures = [Figures.of(run, now) for run in runs]
    differ = differences(runs)
    if args.json:
        found = {
            "page": str(file),
            "runs": [f.to_dict() for f in figures],
            "differences": {d.key: list(d.values) for d in differ},
        }
        print(json.dumps(_finite(found), indent=1))
        return
    print(_table([["", *names], *([row.name, *row.texts] for row in rows_of(figures))]))
    if differ:
        print()
        print(_table([["what differs", *names], *([d.key, *d.values] for d in differ)], right=False))
    print(f"\n{file}")


def _finite(value: Any) -> Any:
    """NaN and infinity have no place in JSON: null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(rows: Sequence[Sequence[str]], right: bool = True) -> str:
    """Rows as aligned text, the first one underlined; all but the first column to the right if asked."""
    cells = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [c.rjust(w) if right and i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Without what would steer a terminal, and not too wide; the end of a long name tells more than its beginning."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= WIDEST else "…" + clean[-WIDEST + 1 :]


if __name__ == "__main__":
    sys.exit(main())
