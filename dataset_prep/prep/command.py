"""The command line that every corpus command has, and what they do alike."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from chatbridge.common.logging import forgiving_streams
from dataset_prep.prep.items import Drop, Item
from dataset_prep.prep.job import Job, Options, summary
from dataset_prep.prep.media_placement import CHECKS, FOLDERS, MediaPlacer, link_folder


def make_parser(module: str, doc: str, source: str | None = None, media: bool = True) -> argparse.ArgumentParser:
    """The arguments that all commands share.

    Args:
        module: "coco_caption", for ``python -m dataset_prep.coco_caption``; doc: the module's docstring.
        source: help of the positional argument; None for a command without one.
        media: whether it places media files (``--check``, ``--place``).
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m dataset_prep.{module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if source is not None:
        parser.add_argument("source", type=Path, help=source)
    parser.add_argument("--out", type=Path, required=True, help="destination folder")
    add_running(parser)
    if media:
        parser.add_argument(
            "--check",
            choices=CHECKS,
            default="header",
            help="how closely media are looked at: there and not empty, header and length, or read as in training",
        )
        parser.add_argument(
            "--place", choices=("link", "copy"), default="link", help="link the media folder, or copy what is kept"
        )
    return parser


def add_running(parser: argparse.ArgumentParser) -> None:
    """The arguments of every job: workers, limit, overwrite, quiet."""
    workers = min(16, os.cpu_count() or 1)
    parser.add_argument("--workers", type=whole, default=workers, help=f"processes; 0 works in this one ({workers})")
    parser.add_argument("--limit", type=positive, help="read the first N samples only")
    parser.add_argument("--overwrite", action="store_true", help="start over where a result stands already")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def options(args: argparse.Namespace) -> Options:
    return Options(args.workers, args.limit, args.overwrite, args.quiet)


def run_command(body: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """The exit status of a command: errors as one line each, no traceback."""
    forgiving_streams()
    try:
        return body(args) or 0
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def prepare(
    args: argparse.Namespace,
    name: str,
    kind: str,
    items: Callable[[], Iterable[Item | Drop]],
    roots: dict[str, Path],
    inputs: list[Path],
    total: Callable[[], int] | None = None,
    out: Path | None = None,
    settings: dict[str, Any] | None = None,
    frames: int = 0,
    size: int = 256,
) -> dict[str, Any]:
    """Prepare one corpus: ``annotations.json``, the media folders, ``dropped.jsonl`` and ``manifest.json``.

    Args:
        name: of the command or dataset; kind: the task kind that its entries are for, noted in the manifest.
        items: its samples; roots: modality -> the folder of its files; inputs: its annotation files.
        out: the destination, ``args.out`` when None; settings: further arguments that decide the result.
        frames: frames to take of every video instead of the video itself; size: of their shorter side, in pixels.

    Raises:
        ValueError: a media folder that does not exist, or nothing kept.
    """
    out = args.out if out is None else out
    for modality, root in roots.items():
        if not root.is_dir():
            raise ValueError(f"the {modality} folder {root} does not exist; name it with --media")
        if args.place == "link" and not (modality == "video" and frames):
            link_folder(root, out / FOLDERS[modality])
    folders = {modality: str(root) for modality, root in roots.items()}
    plan = {"kind": kind, "check": args.check, "place": args.place, "media": folders, "frames": frames}
    job = Job(
        name=name,
        out=out,
        items=items,
        work=MediaPlacer(roots, out, args.check, args.place, frames, size),
        settings=plan | (settings or {}),
        inputs=inputs,
        total=total,
    )
    manifest = job.run(options(args))
    print(summary(manifest, out))
    return manifest


def media_root(given: Path | None, *guesses: Path) -> Path:
    """The media folder: the one given, else the first guess that exists.

    Raises:
        ValueError: with every place that was looked at.
    """
    for path in [given] if given is not None else guesses:
        if path.is_dir():
            return path
    places = given if given is not None else ", ".join(map(str, guesses))
    raise ValueError(f"no media folder: looked for {places}; name it with --media")


def whole(text: str) -> int:
    """An argument that counts, 0 included."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def positive(text: str) -> int:
    """An argument that counts, from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value
