"""Webdataset tars used where they are: looked through, counted and indexed, not changed."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from chatbridge.processors import MediaError
from chatbridge.processors.base import Blob
from dataset_prep.prep.command import options
from dataset_prep.prep.downloads import captioned
from dataset_prep.prep.items import DEAD_LINK, MALFORMED, MISSING, UNREADABLE, Drop, Item, Part
from dataset_prep.prep.job import Job, hash_of, sha256, summary
from dataset_prep.prep.media import check_media, link_folder, processors
from dataset_prep.prep.tables import rows
from dataset_prep.prep.tars import tar_samples, write_index

TRUNCATED = "truncated tar"


@dataclass
class TarCheck:
    """Work on tars in place: counts what a reader would find in each, changes nothing."""

    modality: str
    check: str

    def __call__(self, number: int, items: list[Item]) -> Part:
        part = Part(samples=0)
        for item in items:
            self._tar(Path(item.entry["tar"]), item, part)
        return part

    def _tar(self, path: Path, item: Item, part: Part) -> None:
        good, problems, dead = 0, [], Counter(_dead_links(path))
        total, media = 0, [0, 0, 0]
        try:
            for key, members in tar_samples(path):
                total += 1
                problem = self._problem(key, members, path.name)
                if problem is None:
                    good += 1
                    size = sum(len(data) for ending, data in members.items() if ending not in ("txt", "json"))
                    media = [media[0] + 1, media[1] + size, media[2] + hash_of(f"{path.name}/{key}\0{size}")]
                else:
                    problems.append(problem)
        except ValueError as error:
            # A reader would fail in the middle of it at every epoch: better without it, and told so.
            part.dropped.append(Drop(item.id, TRUNCATED, f"after {total} samples: {error}", path.name))
            part.read += 1
            return
        part.read += total + sum(dead.values())
        part.dropped += problems
        part.counted = dict(Counter(part.counted) + dead)
        part.samples += good
        part.media[self.modality] = [
            a + b for a, b in zip(part.media.get(self.modality, [0, 0, 0]), media, strict=True)
        ]
        line = {"file": f"shards/{path.name}", "samples": total, "bytes": path.stat().st_size, "sha256": sha256(path)}
        part.kept.append(line | ({"unusable": len(problems)} if problems else {}))

    def _problem(self, key: str, members: dict[str, bytes], tar: str) -> Drop | None:
        where = f"{tar}/{key}"
        processor = _processor(self.modality)
        pictures = [ending for ending in members if f".{ending}" in processor.extensions]
        if not pictures:
            return Drop(key, MISSING, f"no {self.modality} in the tar (has: {', '.join(members) or 'nothing'})", where)
        row: dict[str, Any] = {"caption": members["txt"].decode("utf-8", "replace")} if "txt" in members else {}
        if "json" in members:
            try:
                described = _object(members["json"])
            except ValueError as error:
                return Drop(key, MALFORMED, f"{key}.json: {error}", where)
            row = {**row, **{k: v for k, v in described.items() if v is not None}}
        found = captioned(key, row, {}, where)
        if isinstance(found, Drop):
            return found
        try:
            for ending in pictures:
                check_media(self.modality, Blob(f"{key}.{ending}", members[ending]), self.check, processor)
        except MediaError as error:
            return Drop(key, UNREADABLE, f"{error.source}: {error.reason}", where)
        return None


@cache
def _processor(modality: str) -> Any:
    """The modality's processor, made once in every process."""
    return processors()[modality]


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object in a tar member. Raises ValueError."""
    tree = json.loads(data.decode("utf-8"))
    if not isinstance(tree, dict):
        raise ValueError(f"is {type(tree).__name__}, not an object")
    return tree


def _dead_links(tar: Path) -> dict[str, int]:
    """How many links of a shard failed, by the downloader's table beside it."""
    table = tar.with_suffix(".parquet")
    if not table.exists():
        return {}
    failed = sum(1 for _, row in rows(table) if row.get("status") not in (None, "success"))
    return {DEAD_LINK: failed} if failed else {}


def index_tars(args: argparse.Namespace, name: str, kind: str, modality: str) -> None:
    """Index a folder of tars where it is."""
    tars = sorted(args.source.glob("*.tar"))
    link_folder(args.source, args.out / "shards")
    job = Job(
        name=name,
        out=args.out,
        items=lambda: (Item(tar.name, {"tar": str(tar)}) for tar in tars),
        work=TarCheck(modality, args.check),
        settings={"kind": kind, "check": args.check, "source": str(args.source.resolve()), "tars": len(tars)},
        total=lambda: len(tars),
        listing=None,
        chunk=1,
        unit=" tars",
        finish=partial(_finish_index, kind),
    )
    manifest = job.run(options(args))
    print(summary(manifest, args.out))
    print(f"  {manifest['samples']:,} samples in {manifest['shards']:,} tars: {args.out / 'index.json'}")
    if not manifest["samples"]:
        raise ValueError(f"{args.source}: not one usable tar")


def _finish_index(kind: str, out: Path, shards: list[dict[str, Any]]) -> dict[str, Any]:
    return write_index(out, kind, shards)
