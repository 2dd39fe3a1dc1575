"""A job: samples in, a listing and a manifest out, restartable at any moment.

While it runs, finished pieces stand in ``DEST/.progress.jsonl``. At the end they are put in the corpus' order into
the listing, the samples that were left out into ``dropped.jsonl``, counts and hashes into ``manifest.json``.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chatbridge.common.documents import parse_json, read_json, read_text
from dataset_prep.prep.items import DUPLICATE, Drop, Item
from dataset_prep.prep.journal import Journal, changed
from dataset_prep.prep.pool import Work, run_pieces
from dataset_prep.prep.tables import guarded

MANIFEST, DROPPED, PROGRESS = "manifest.json", "dropped.jsonl", ".progress.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Options:
    """What every command takes.

    Attributes:
        workers: processes; limit: samples read at most; overwrite: start over where a result stands already.
        quiet: no progress bar.
    """

    workers: int = 0
    limit: int | None = None
    overwrite: bool = False
    quiet: bool = False


@dataclass
class Job:
    """One listing to make.

    Attributes:
        name: of the command; out: the destination folder.
        items: gives the corpus' samples, always in the same order; called when the job starts.
        work: prepares a piece of them.
        settings: what else decides the result; a restart with other settings is refused.
        inputs: files that are hashed into the manifest.
        total: how many samples `items` gives, for the progress bar.
        listing: the output file (a JSON list of what is kept, or a table if it ends in .tsv), or None.
        chunk: samples per piece; unit: what the bar counts.
        finish: called at the end, if anything was kept, with the destination and every kept line; what it returns
            joins the manifest.
        keeps: whether something must be kept.
    """

    name: str
    out: Path
    items: Callable[[], Iterable[Item | Drop]]
    work: Work
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: list[Path] = field(default_factory=list)
    total: Callable[[], int] | None = None
    listing: str | None = "annotations.json"
    chunk: int = 128
    unit: str = " samples"
    finish: Callable[[Path, list[dict[str, Any]]], dict[str, Any]] | None = None
    keeps: bool = True

    def run(self, options: Options) -> dict[str, Any]:
        """Do what is left to do; returns the manifest.

        Raises:
            ValueError: a destination that holds something else, unreadable sources, or nothing kept at all.
        """
        manifest = self._run(options)
        if self.keeps and not manifest["counts"]["kept"]:
            print(summary(manifest, self.out))
            raise ValueError(f"{self.out}: nothing was kept; see {self.out / DROPPED} for the reasons")
        return manifest

    def _run(self, options: Options) -> dict[str, Any]:
        self.out.mkdir(parents=True, exist_ok=True)
        signature = self._signature(options)
        if options.overwrite:
            for name in (MANIFEST, PROGRESS):
                (self.out / name).unlink(missing_ok=True)
        done = self._finished(signature)
        if done is not None:
            return done
        journal = Journal(self.out / PROGRESS, signature)
        try:
            self._work_off(journal, options)
            manifest = self._write(journal, signature)
        finally:
            journal.close()
        journal.path.unlink()
        return manifest

    def _signature(self, options: Options) -> dict[str, Any]:
        states = {}
        for path in self.inputs:
            try:
                status = path.stat()
            except OSError as error:
                raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
            states[str(path)] = [status.st_size, status.st_mtime_ns]
        plan = {"command": self.name, "format": FORMAT, "settings": self.settings}
        return {**plan, "limit": options.limit, "piece": self.chunk, "inputs": states}

    def _finished(self, signature: dict[str, Any]) -> dict[str, Any] | None:
        file = self.out / MANIFEST
        if not file.exists():
            return None
        try:
            manifest = read_json(file)
        except ValueError:
            manifest = {}
        if not isinstance(manifest, dict) or "counts" not in manifest:
            manifest = {}  # damaged
        differs = changed(manifest.get("signature", {}), signature)
        if differs:
            raise ValueError(
                f"{self.out} holds the result of another run ({differs}); take another --out, or --overwrite"
            )
        return manifest

    def _pieces(self, limit: int | None) -> Iterator[tuple[int, list[Item | Drop]]]:
        """Numbered pieces of the corpus; a second sample with an id becomes a Drop."""
        seen: set[int] = set()

        def unique() -> Iterator[Item | Drop]:
            for item in itertools.islice(guarded(self.items(), *self.inputs), limit):
                if isinstance(item, Item):
                    # Eight bytes of a hash instead of the id: a hundred million ids would not fit in memory.
                    key = hash_of(item.id)
                    if key in seen:
                        yield Drop(item.id, DUPLICATE, "", item.where)
                        continue
                    seen.add(key)
                yield item

        stream = unique()
        number = 0
        while piece := list(itertools.islice(stream, self.chunk)):
            yield number, piece
            number += 1

    def _work_off(self, journal: Journal, options: Options) -> None:
        total = self.total() if self.total is not None and not options.quiet else None
        if total is not None and options.limit is not None:
            total = min(total, options.limit)
        bar = tqdm(total=total, unit=self.unit, desc=self.name, disable=options.quiet, file=sys.stderr)
        source_drops: dict[int, list[Drop]] = {}
        sizes: dict[int, int] = {}

        def todo() -> Iterator[tuple[int, list[Item]]]:
            for number, piece in self._pieces(options.limit):
                if number in journal:
                    if not options.quiet:
                        bar.initial += len(piece)  # the speed, and so the time left, is that of this run
                    bar.update(len(piece))
                    continue
                sizes[number] = len(piece)
                source_drops[number] = [item for item in piece if isinstance(item, Drop)]
                yield number, [item for item in piece if isinstance(item, Item)]

        left_out = 0
        with bar:
            for number, part in run_pieces(self.work, todo(), options.workers):
                drops = source_drops.pop(number)
                part.dropped = drops + part.dropped
                part.read += len(drops)
                journal.add(number, part)
                left_out += sum(part.reasons().values())
                bar.set_postfix(left_out=left_out, refresh=False)
                bar.update(sizes.pop(number))

    def _write(self, journal: Journal, signature: dict[str, Any]) -> dict[str, Any]:
        counts, reasons, unlisted, media, extra = Counter(), Counter(), Counter(), {}, []
        listing = self.out / self.listing if self.listing else None
        with _Replacing(listing) as kept_file, _Replacing(self.out / DROPPED) as dropped_file:
            for _, part in journal.parts():
                counts["read"] += part.read
                counts["kept"] += len(part.kept) if part.samples is None else part.samples
                reasons += part.reasons()
                unlisted += Counter(part.counted)
                for modality, numbers in part.media.items():
                    old = media.get(modality, [0, 0, 0])
                    media[modality] = [a + b for a, b in zip(old, numbers, strict=True)]
                for line in part.kept:
                    kept_file.entry(line)
                if self.finish is not None:
                    extra += part.kept
                for drop in part.dropped:
                    dropped_file.line({name: value for name, value in vars(drop).items() if value})
        counts["dropped"] = sum(reasons.values())
        found = sorted(media.items())
        manifest = {
            "signature": signature,
            "counts": {name: counts[name] for name in ("read", "kept", "dropped")},
            "reasons": dict(reasons.most_common()),
            "counted_only": dict(unlisted),
            "media": {m: {"files": n, "bytes": b, "names_and_sizes": f"{h % 2**64:016x}"} for m, (n, b, h) in found},
            "inputs": {str(path): sha256(path) for path in self.inputs},
        }
        manifest |= self.finish(self.out, extra) if self.finish is not None and counts["kept"] else {}
        files = [f for f in (listing, self.out / DROPPED) if f is not None and f.exists()]
        manifest["files"] = manifest.get("files", {}) | {f.name: sha256(f) for f in files}
        write_json(self.out / MANIFEST, manifest)
        return manifest


class _Replacing:
    """A text file that takes its place only when it is complete: a JSON list, JSON lines, or tab-separated."""

    def __init__(self, path: Path | None):
        self.path = path
        self._count = 0
        self._list = False

    def __enter__(self) -> _Replacing:
        self._file = None
        if self.path is not None:
            self._temporary = self.path.with_name(self.path.name + ".part")
            self._file = self._temporary.open("w", encoding="utf-8", errors="backslashreplace")
        return self

    def entry(self, value: Any) -> None:
        """One entry of a JSON list, on a line of its own; a row, where the name ends in .tsv."""
        if self._file is None:
            return
        if self.path.suffix == ".tsv":
            writer = csv.writer(self._file, delimiter="\t", lineterminator="\n")
            writer.writerows([list(value)] * (self._count == 0) + [list(value.values())])
            self._count += 1
        else:
            self._file.write((",\n" if self._count else "[\n") + json.dumps(value, ensure_ascii=False))
            self._count += 1
            self._list = True

    def line(self, value: Any) -> None:
        """One line of JSON lines."""
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._count += 1

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._file is None:
            return
        if self._list:
            self._file.write("\n]\n")
        elif self._count == 0 and self.path.suffix == ".json":
            self._file.write("[]\n")
        self._file.close()
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink()


def json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines. Raises ValueError."""
    return [parse_json(line, path) for line in read_text(path).split("\n") if line]


def write_json(path: Path, tree: Any) -> None:
    """Write a JSON file that is either the old or the new one, never half."""
    temporary = path.with_name(path.name + ".part")
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(temporary, path)


def hash_of(text: str) -> int:
    """64 bits that stand for a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def summary(manifest: dict[str, Any], out: Path) -> str:
    """Kept, dropped and why, in a few lines."""
    counts = manifest["counts"]
    lines = [f"{out}: {counts['kept']:,} kept, {counts['dropped']:,} left out"]
    lines += [f"  {number:>9,}  {reason}" for reason, number in manifest["reasons"].items()]
    if counts["dropped"]:
        only = ", ".join(manifest["counted_only"])
        lines.append(f"  (listed in {out / DROPPED}" + (f"; {only} only counted)" if only else ")"))
    return "\n".join(lines)
