"""AudioCaps: audio-text pairs for MULTIS and for evaluation.

SOURCE is train.csv, val.csv or test.csv (audiocap_id, youtube_id, start_time, caption); the last two have five
captions per clip, which become one sample. Sounds (or videos with sound) are looked for anywhere below --media by the
names that downloaders give them: <youtube_id>, Y<youtube_id>, <youtube_id>_<start>, <audiocap_id> ...

  python -m dataset_prep.audiocaps train.csv --media audiocaps/audio --out data/audiocaps
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from chatbridge.processors import AudioProcessor
from dataset_prep.prep.command import make_parser, media_root, prepare, run_command
from dataset_prep.prep.grouping import Captioned, group
from dataset_prep.prep.items import Drop, Item
from dataset_prep.prep.media_placement import index_by_stem
from dataset_prep.prep.tables import guarded, rows, text

KIND = "ta-cap"
SECONDS = 10
"""Length of an AudioSet clip."""


def clip_stems(youtube: str, start: str, audiocap: str) -> list[str]:
    """File stems that a clip may have."""
    stems = [youtube, f"Y{youtube}"]
    if start.isdecimal():
        first, last = int(start), int(start) + SECONDS
        for name in (youtube, f"Y{youtube}"):
            stems += [f"{name}_{first}", f"{name}_{first}_{last}", f"{name}_{first * 1000}_{last * 1000}"]
            stems += [f"{name}_{first:06d}_{last:06d}", f"{name}_{first}.000"]
    return stems + ([audiocap] if audiocap else [])


def audiocaps_items(source: Path, index: dict[str, str]) -> Iterator[Item | Drop]:
    """One sample per clip, with all its captions."""
    return group(_rows(source, index), "audio", source.name)


def _rows(source: Path, index: dict[str, str]) -> Iterator[Captioned]:
    for number, row in rows(source):
        youtube = text(row, "youtube_id", "ytid", "video_id")
        start = text(row, "start_time", "start_seconds").removesuffix(".0")
        if not youtube:
            yield Captioned(number, "", (), None, "has no youtube_id")
            continue
        stems = clip_stems(youtube, start, text(row, "audiocap_id"))
        found = [index[stem] for stem in stems if stem in index]
        names = tuple(found[:1]) or (youtube,)
        yield Captioned(number, f"{youtube}_{start}" if start else youtube, names, row.get("caption"))


def body(args: argparse.Namespace) -> None:
    root = media_root(args.media, args.source.parent / "audio", args.source.parent / args.source.stem)
    index = index_by_stem(root, AudioProcessor.extensions)
    items = list(guarded(audiocaps_items(args.source, index), args.source))
    prepare(args, "audiocaps", KIND, lambda: items, {"audio": root}, [args.source], partial(len, items))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("audiocaps", __doc__, source="train.csv, val.csv or test.csv")
    parser.add_argument("--media", type=Path, help="folder of the sounds; by default 'audio' beside SOURCE")
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
