"""Webdataset tars used where they are: looked through, counted and indexed, not changed."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from chatbridge.datasets.base import sample_errors
from chatbridge.datasets.shard_readers import LocalShards, MemberPlace
from chatbridge.datasets.shards import LINKED_FOLDER, Shard
from chatbridge.datasets.tars import scan
from chatbridge.datasets.webdataset import annotation, members_of
from chatbridge.processors.base import Blob
from chatbridge.processors.text import pre_caption
from dataset_prep.prep.command import options
from dataset_prep.prep.items import (
    DEAD_LINK,
    EMPTY,
    MALFORMED,
    MISSING,
    UNREADABLE,
    Drop,
    Item,
    PieceResult,
    UnusableSample,
)
from dataset_prep.prep.job import Job, hash_of, sha256, summary
from dataset_prep.prep.media_placement import check_media, link_folder, processors
from dataset_prep.prep.tables import rows
from dataset_prep.prep.tars import write_index

TRUNCATED, DAMAGED = "truncated tar", "damaged tar"


@dataclass
class TarCheck:
    """Work on tars in place: counts what a reader would find in each, changes nothing."""

    modality: str
    check: str

    def __call__(self, number: int, items: list[Item]) -> PieceResult:
        part = PieceResult(samples=0)
        for item in items:
            self._tar(Path(item.entry["tar"]), item, part)
        return part

    def _tar(self, path: Path, item: Item, part: PieceResult) -> None:
        """Everything in a tar, by the reader of training."""
        part.read += 1
        try:
            table = scan(path)
        except (ValueError, OSError) as error:
            part.dropped.append(Drop(item.id, DAMAGED, str(getattr(error, "reason", error)), path.name))
            return
        if table.problem is not None:
            # A reader would fail in the middle of it at every epoch: it is left out and reported.
            reason = TRUNCATED if "is cut off" in table.problem else DAMAGED
            part.dropped.append(Drop(item.id, reason, f"after {len(table)} samples: it {table.problem}", path.name))
            return
        reader, dead = LocalShards([Shard(str(path))]), Counter(_dead_links(path))
        good, problems, media = 0, [], [0, 0, 0]
        for number in range(len(table)):
            key, size, problem = self._sample(path, reader, number)
            if problem is None:
                good += 1
                media = [media[0] + 1, media[1] + size, media[2] + hash_of(f"{path.name}/{key}\0{size}")]
            else:
                problems.append(problem)
        part.read += len(table) + sum(dead.values()) - 1
        part.dropped += problems
        part.counted = dict(Counter(part.counted) + dead)
        part.samples += good
        part.media[self.modality] = [
            a + b for a, b in zip(part.media.get(self.modality, [0, 0, 0]), media, strict=True)
        ]
        size = path.stat().st_size
        line = {"file": f"{LINKED_FOLDER}/{path.name}", "samples": len(table), "bytes": size, "sha256": sha256(path)}
        part.kept.append(line | ({"unusable": len(problems)} if problems else {}))

    def _sample(self, path: Path, reader: LocalShards, number: int) -> tuple[str, int, Drop | None]:
        """(key, bytes of its media, what is wrong with it) of a sample, as training would find it."""
        key, size = f"#{number}", 0
        try:
            with sample_errors:
                found = reader.members(0, number)
                key = found["__key__"]
                size = sum(part.size for part in found.values() if isinstance(part, MemberPlace))
                self._check(f"{path.name}/{key}", reader, found)
        except UnusableSample as problem:
            return key, size, Drop(key, problem.reason, problem.detail, f"{path.name}/{key}")
        except ValueError as error:
            source, detail = str(getattr(error, "source", key)), getattr(error, "reason", str(error))
            reason = MALFORMED if source.endswith(".json") else UNREADABLE
            return key, size, Drop(key, reason, f"{source.rpartition('/')[2]}: {detail}", f"{path.name}/{key}")
        return key, size, None

    def _check(self, where: str, reader: LocalShards, members: dict[str, Any]) -> None:
        """Raise ValueError for a sample that training could not use."""
        processor = _processor(self.modality)
        endings = [ending for ending in members if ending != "__key__"]
        if not any(f".{ending}".endswith(processor.extensions) for ending in endings):
            raise UnusableSample(MISSING, f"no {self.modality} in the tar (has: {', '.join(endings) or 'nothing'})")
        if not {"txt", "json"} & set(endings):
            raise UnusableSample(EMPTY)
        record = annotation(where, members, ())
        if not any(pre_caption(text).strip() for text in record.captions):
            fault = record.problems.get("caption", "")
            raise UnusableSample(MALFORMED if fault else EMPTY, fault)
        for ending in members_of(where, record, self.modality, members, processor.extensions):
            blob = Blob(f"{members['__key__']}.{ending}", reader.read(members[ending]))
            check_media(self.modality, blob, self.check, processor)


@cache
def _processor(modality: str) -> Any:
    """The modality's processor, made once in every process."""
    return processors()[modality]


def _dead_links(tar: Path) -> dict[str, int]:
    """How many links of a shard failed, by the downloader's table beside it."""
    table = tar.with_suffix(".parquet")
    if not table.exists():
        return {}
    failed = sum(1 for _, row in rows(table) if row.get("status") not in (None, "success"))
    return {DEAD_LINK: failed} if failed else {}


def index_tars(args: argparse.Namespace, name: str, kind: str, modality: str) -> None:
    """Index a folder of tars where it is."""
    tars = sorted(tar for tar in args.source.glob("*.tar") if not tar.name.startswith("."))
    link_folder(args.source, args.out / LINKED_FOLDER)
    job = Job(
        name=name,
        out=args.out,
        items=lambda: (Item(tar.name, {"tar": str(tar.absolute())}) for tar in tars),
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


def _finish_index(kind: str, out: Path, shards: list[dict[str, Any]]) -> dict[str, Any]:
    return write_index(out, kind, shards)
