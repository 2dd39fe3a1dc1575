"""Clotho: sounds with five captions each, for evaluation (or training).

SOURCE is the folder with clotho_captions_<split>.csv (file_name, caption_1 ... caption_5) and the sounds in <split>/,
or one such csv with --media.

  python -m dataset_prep.clotho clotho --split evaluation --out data/clotho
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from chatbridge.datasets.records import is_blank
from dataset_prep.prep.command import make_parser, media_root, prepare, run_command
from dataset_prep.prep.grouping import Captioned, group
from dataset_prep.prep.items import Drop, Item
from dataset_prep.prep.tables import column, guarded, rows

KIND = "ta-cap"
SPLITS = ("development", "validation", "evaluation")


def clotho_items(source: Path) -> Iterator[Item | Drop]:
    """One sample per sound."""
    return group(_rows(source), "audio", source.name)


def _rows(source: Path) -> Iterator[Captioned]:
    for number, row in rows(source):
        name = str(column(row, ("file_name", "filename")) or "")
        if not name.strip():
            yield Captioned(number, "", (), None, "has no file_name")
            continue
        texts = [row[key] for key in sorted(row) if str(key).startswith("caption_") and not is_blank(row[key])]
        # Names of Freesound's uploaders begin and end in spaces now and then; archives keep them, spreadsheets do not.
        names = tuple(dict.fromkeys((name, name.strip())))
        yield Captioned(number, name.strip(), names, texts)


def body(args: argparse.Namespace) -> None:
    source: Path = args.source
    if source.is_dir():
        source = source / f"clotho_captions_{args.split}.csv"
    guesses = (source.parent / args.split, source.parent / f"clotho_audio_{args.split}" / args.split)
    root = media_root(args.media, *guesses)
    items = list(guarded(clotho_items(source), source))
    prepare(args, "clotho", KIND, lambda: items, {"audio": root}, [source], partial(len, items))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("clotho", __doc__, source="folder of Clotho, or one csv")
    parser.add_argument("--split", choices=SPLITS, default="development", help="which part (development)")
    parser.add_argument("--media", type=Path, help="folder of the sounds; by default <split> beside the csv")
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
