"""WebVid: video-text pairs for stage 1.

SOURCE is one of
  - results_2M_train.csv (videoid, name, page_dir ...), with the videos below --media as <page_dir>/<videoid>.mp4
    or <videoid>.mp4;
  - the folder that video2dataset wrote, of numbered folders or of tars (tars are used in place).
--frames N writes N frames per video and leaves the videos out of the destination.

  python -m dataset_prep.webvid results_2M_train.csv --media webvid/videos --out data/webvid
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dataset_prep.prep.command import make_parser, media_root, prepare, run_command, whole
from dataset_prep.prep.downloads import captioned, count_downloads, download_items, is_download
from dataset_prep.prep.in_place import index_tars
from dataset_prep.prep.items import MALFORMED, Drop, Item
from dataset_prep.prep.tables import count, rows, text

KIND = "tv-cap"


def webvid_items(source: Path) -> Iterator[Item | Drop]:
    """One sample per row of the table."""
    for index, row in rows(source):
        where = f"{source.name}: row {index}"
        video = text(row, "videoid", "video_id", "id")
        if not video:
            yield Drop("", MALFORMED, "has no videoid", where)
            continue
        page = text(row, "page_dir")
        names = ([f"{page}/{video}"] if page else []) + [video]
        yield captioned(video, row, {"video": tuple(names)}, where)


def body(args: argparse.Namespace) -> None:
    source: Path = args.source
    settings = {"frames": args.frames, "size": args.size}
    if source.is_dir():
        if any(source.glob("*.tar")):
            if args.frames:
                raise ValueError("--frames cannot be taken from tars in place; unpack them first")
            index_tars(args, "webvid", KIND, "video")
            return
        if not is_download(source):
            raise ValueError(f"{source} has neither .tar files nor numbered folders (00000 ...) of videos")
        items, total = partial(download_items, source, "video"), partial(count_downloads, source)
        inputs, root = sorted(source.glob("*.parquet")), source
    else:
        items, total, inputs = partial(webvid_items, source), partial(count, source), [source]
        root = media_root(args.media, source.parent / "videos")
    prepare(
        args,
        "webvid",
        KIND,
        items,
        {"video": root},
        inputs,
        total,
        settings=settings,
        frames=args.frames,
        size=args.size,
    )


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("webvid", __doc__, source="csv, or video2dataset's folder")
    parser.add_argument("--media", type=Path, help="folder of the videos; by default 'videos' beside SOURCE")
    parser.add_argument("--frames", type=whole, default=0, help="write this many frames of every video instead of it")
    parser.add_argument("--size", type=whole, default=256, help="pixels of a frame's shorter side; 0 keeps the video's")
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
