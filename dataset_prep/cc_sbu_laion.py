"""Conceptual Captions, SBU and LAION, in MiniGPT-4's filtered sets: image-text pairs for stage 1.

SOURCE is one of
  - a folder of webdataset tars (00000.tar ...), as img2dataset writes them: used where they are, indexed and checked;
  - a folder of files (00000/000000000.jpg ...) with img2dataset's 00000.parquet or .json files beside them;
  - a table (.parquet .tsv .csv .json .jsonl) whose rows name image files below --media;
  - such a table with captions and links only, without --media: gives urls.tsv for the downloader.

  python -m dataset_prep.cc_sbu_laion cc_sbu/cc_sbu_dataset --out data/cc3m
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dataset_prep.prep.command import make_parser, media_root, options, prepare, run_command
from dataset_prep.prep.downloads import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    URL_COLUMNS,
    captioned,
    count_downloads,
    download_items,
    is_download,
    table_items,
)
from dataset_prep.prep.in_place import index_tars
from dataset_prep.prep.items import MALFORMED, Drop, Item, PieceResult
from dataset_prep.prep.job import Job, summary
from dataset_prep.prep.tables import column, count, rows
from dataset_prep.prep.texts import captions

KIND = "ti-cap"


def _url_items(source: Path) -> Iterator[Item | Drop]:
    for index, row in rows(source):
        where = f"{source.name}: row {index}"
        url = column(row, URL_COLUMNS)
        if not url:
            yield Drop("", MALFORMED, "has no link", where)
            continue
        found = captioned(str(url), row, {}, where)
        if isinstance(found, Item):
            text = captions(column(row, CAPTION_COLUMNS))[0]
            found = Item(found.id, {"caption": text, "url": str(url)}, {}, where)
        yield found


def _as_they_are(number: int, items: list[Item]) -> PieceResult:
    return PieceResult(kept=[item.entry for item in items], read=len(items))


def list_urls(args: argparse.Namespace) -> None:
    """Write ``urls.tsv`` from captions and links."""
    job = Job(
        name="cc_sbu_laion",
        out=args.out,
        items=partial(_url_items, args.source),
        work=_as_they_are,
        settings={"what": "urls"},
        inputs=[args.source],
        total=partial(count, args.source),
        listing="urls.tsv",
        chunk=4096,
    )
    print(summary(job.run(options(args)), args.out))
    print(
        f"download with: img2dataset --url_list {args.out / 'urls.tsv'} --input_format tsv --url_col url --caption_col "
        f"caption --output_format webdataset --output_folder {args.out / 'download'} --image_size 256 "
        "--resize_mode keep_ratio --skip_reencode True"
    )


def body(args: argparse.Namespace) -> None:
    source: Path = args.source
    if source.is_dir():
        if any(source.glob("*.tar")):
            index_tars(args, "cc_sbu_laion", KIND, "image")
            return
        if not is_download(source):
            raise ValueError(f"{source} has neither .tar files nor numbered folders (00000 ...) of images")
        tables = sorted(source.glob("*.parquet"))
        items, total = partial(download_items, source, "image"), partial(count_downloads, source)
        prepare(args, "cc_sbu_laion", KIND, items, {"image": source}, tables, total)
        return
    if args.media is None and _links_only(source, args.file_column):
        list_urls(args)
        return
    root = media_root(args.media, source.parent / "images", source.parent / "image")
    items = partial(table_items, source, "image", args.file_column)
    settings = {"file_column": args.file_column}
    prepare(args, "cc_sbu_laion", KIND, items, {"image": root}, [source], partial(count, source), settings=settings)


def _links_only(source: Path, file_column: str | None) -> bool:
    _, row = next(rows(source), (0, {}))
    names = (file_column,) if file_column else FILE_COLUMNS
    return column(row, names) is None and column(row, URL_COLUMNS) is not None


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("cc_sbu_laion", __doc__, source="folder of tars or files, or a table")
    parser.add_argument("--media", type=Path, help="folder that a table's file names are relative to")
    parser.add_argument("--file-column", help="the table's column of file names, where it has another name")
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
