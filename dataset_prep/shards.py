"""An annotation file and its media -> webdataset tars with an index.

Every sample becomes <id>.jpg (.mp4, .wav, .flac ...) and <id>.json, the annotation entry in which the keys
<modality>_id name the files in the tar. DEST holds 000000.tar ..., index.json (samples, bytes and SHA-256 of each tar)
and manifest.json. The same input gives the same bytes, with any number of workers.

  python -m dataset_prep.shards --annotations data/coco_caption/annotations.json --kind ti-cap \\
      --media data/coco_caption/images --out data/coco_caption/shards
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from chatbridge.datasets import TaskKind
from chatbridge.datasets.base import sample_errors
from chatbridge.processors import MediaError, MediaLoader
from chatbridge.processors.base import MissingMedia
from dataset_prep.prep.command import make_parser, options, positive, run_command
from dataset_prep.prep.entries import SHARED, fault_reason, media_arguments, read_entry
from dataset_prep.prep.items import MISSING, UNREADABLE, Drop, Item, PieceResult
from dataset_prep.prep.job import Job, hash_of, summary
from dataset_prep.prep.media_placement import CHECKS, check_media, inside, processors
from dataset_prep.prep.tables import count, rows
from dataset_prep.prep.tars import INDEX, TarWriter, write_index

_NOT_IN_KEYS = re.compile(r"[^\w-]+")
LONGEST_KEY = 120


@dataclass
class ShardWriter:
    """Work: one tar."""

    roots: dict[str, Path]
    out: Path
    check: str

    @cached_property
    def loader(self) -> MediaLoader:
        known = processors()
        return MediaLoader({modality: known[modality] for modality in self.roots}, self.roots)

    def __call__(self, number: int, items: list[Item]) -> PieceResult:
        part = PieceResult(read=len(items), samples=0)
        usable = []
        for item in items:
            try:
                with sample_errors:
                    usable.append((item.id, *self._members(item)))
            except MissingMedia as error:
                part.dropped.append(Drop(item.id, MISSING, str(error), item.where))
            except ValueError as error:
                part.dropped.append(Drop(item.id, fault_reason(str(error), UNREADABLE), str(error), item.where))
        if usable:
            with TarWriter(self.out / f"{number:06d}.tar") as tar:
                for key, members, entry in usable:
                    tar.add(key, members, entry)
            part.kept, part.samples = [tar.line()], tar.samples
        return part

    def _members(self, item: Item) -> tuple[dict[str, Path], dict[str, Any]]:
        """Ending -> file, and the entry that names them. Raises MediaError."""
        paths: dict[Path, str] = {}
        named: dict[str, Any] = {}
        for modality, names in item.media.items():
            written = []
            for place, name in enumerate(names):
                path = inside(self.loader.find(modality, name), self.roots[modality])
                if path.is_dir():
                    raise MediaError(name, "is a folder of frames; a tar takes the video itself")
                if not path.suffix[1:]:
                    raise MediaError(name, "has no file name ending, by which a reader would know its kind")
                check_media(modality, path, self.check, self.loader.processors[modality])
                if path not in paths:
                    paths[path] = self._ending(path, modality, place, len(names), set(paths.values()))
                written.append(f"{item.id}.{paths[path]}")
            named[f"{modality}_id"] = written[0] if len(written) == 1 else written
        entry = {name: value for name, value in item.entry.items() if name not in SHARED or name in named}
        return {ending: path for path, ending in paths.items()}, {**entry, **named}

    @staticmethod
    def _ending(path: Path, modality: str, place: int, of: int, taken: set[str]) -> str:
        """``jpg``; ``0.jpg`` and ``1.jpg`` of several; ``thermal.jpg`` where another modality has ``jpg``."""
        ending = path.suffix[1:].lower()
        ending = f"{place}.{ending}" if of > 1 else ending
        return f"{modality}.{ending}" if ending in taken or ending == "json" else ending


def keys(annotations: Path, kinds: Sequence[TaskKind]) -> Iterator[Item | Drop]:
    """Every entry under a key that is its own: its id in letters, digits, '_' and '-'.

    webdataset takes everything behind the first dot for the ending, and folders for part of the key.
    """
    taken: set[int] = set()
    for index, entry in rows(annotations):
        where = f"{annotations.name}: entry {index}"
        record, problems = read_entry(entry, index, kinds)
        if record is None or problems:
            yield Drop(record.id if record else "", fault_reason(problems[0]), "; ".join(problems), where)
            continue
        media = {m: record.files_of(m) for kind in kinds for m in kind.modalities if record.files_of(m)}
        stem = record.id
        for names in media.values():
            stem = os.path.splitext(stem)[0] if stem in names else stem
        key = _NOT_IN_KEYS.sub("_", stem).strip("_")[:LONGEST_KEY] or "sample"
        while hash_of(key) in taken:
            key = f"{key}__{index}"
        taken.add(hash_of(key))
        yield Item(key, dict(entry) | {"id": record.id}, media, where)


def body(args: argparse.Namespace) -> None:
    kinds = TaskKind.parse_all(args.kind)
    folders = {modality: Path(path) for modality, path in media_arguments(args.media, kinds).items()}
    for modality, folder in folders.items():
        if not folder.is_dir():
            raise ValueError(f"--media: the {modality} folder {folder} does not exist")
    media = {modality: str(folder) for modality, folder in folders.items()}
    job = Job(
        name="shards",
        out=args.out,
        items=partial(keys, args.annotations, kinds),
        work=ShardWriter(folders, args.out, args.check),
        settings={"kind": args.kind, "media": media, "check": args.check},
        inputs=[args.annotations],
        total=partial(count, args.annotations),
        listing=None,
        chunk=args.samples,
        finish=partial(_finish, args.kind),
    )
    manifest = job.run(options(args))
    print(summary(manifest, args.out))
    print(f"  {manifest['samples']:,} samples in {manifest['shards']:,} tars: {args.out / INDEX}")


def _finish(kind: str, out: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    wanted = {line["file"] for line in lines}
    for stale in out.glob("[0-9]*.tar"):  # of an earlier run that --overwrite replaced
        if stale.name not in wanted:
            stale.unlink()
    return write_index(out, kind, lines)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("shards", __doc__, media=False)
    parser.add_argument("--annotations", type=Path, required=True, help="annotation file")
    parser.add_argument("--kind", required=True, help="its task kind: ti-cap, tva-conv ...")
    parser.add_argument(
        "--media", action="append", default=[], required=True, metavar="[MODALITY=]DIR", help="media folder; repeat"
    )
    parser.add_argument("--samples", type=positive, default=1000, help="per tar, before any are left out (1000)")
    parser.add_argument("--check", choices=CHECKS, default="header", help="how closely media are looked at (header)")
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
