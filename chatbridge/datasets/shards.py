"""Tar shards of the webdataset layout: what patterns and index files name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatbridge.common.documents import DocumentError, irregular, read_json
from chatbridge.datasets.tars import BLOCK, scan

LINKED_FOLDER = "shards"
"""The one link that an index may follow out of its folder: `dataset_prep` makes it to tars that stay where they are."""

MOST_SAMPLES = 2**40
"""That an index may give a shard."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True)
class Shard:
    """One tar.

    Attributes:
        url: a path, or a URL that webdataset opens; samples: how many it holds; size: in bytes; None where not known.
    """

    url: str
    samples: int | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        """Its short name, for messages."""
        return self.url if self.url.startswith("pipe:") else self.url.rsplit("/", 1)[-1]


def scheme_of(url: str) -> str:
    """What stands before the colon of a URL ("pipe" of a command), "" for a path."""
    found = _SCHEME.match(url)
    return found[1].lower() if found else ""


def is_local(url: str) -> bool:
    """Whether a shard is a plain file here."""
    return scheme_of(url) in ("", "file")


def local_path(url: str) -> str:
    """The path of a shard that `is_local`."""
    return url[len("file:") :] if scheme_of(url) == "file" else url


def find_shards(patterns: Sequence[str], folder: Path | None, index: Path | None = None) -> list[Shard]:
    """The shards that patterns mean: index files, paths and URLs with ``{000..123}``, local paths with ``*``.

    Args:
        patterns: relative paths start at `folder`; index: has the sizes of shards that patterns name.

    Raises:
        ValueError: a pattern without files, a URL that cannot be opened, an index that cannot be read.
    """
    from braceexpand import braceexpand
    from webdataset.gopen import gopen_schemes

    # Only the sizes are taken from it: what is opened, the patterns name.
    known = {shard.name: shard for shard in _listed(index)} if index is not None else {}
    shards: list[Shard] = []
    for pattern in patterns:
        if is_local(pattern) and pattern.endswith(".json"):
            shards += read_index((folder or Path()) / pattern)
            continue
        for url in braceexpand(pattern):
            scheme = scheme_of(url)
            if scheme not in ("", "file") and scheme not in gopen_schemes:
                raise ValueError(
                    f"shards: there is no way to open '{url}'; there is for paths and "
                    f"{', '.join(sorted(name for name in gopen_schemes if name[0] != '_'))}; of other stores, write "
                    f"the command that prints a shard: 'pipe:... {url}'"
                )
            for place in [url] if scheme else _local(url, folder):
                shard = Shard(place)
                listed = known.get(shard.name, shard)
                shards.append(Shard(place, listed.samples, listed.size))
    if len({shard.url for shard in shards}) < len(shards):
        double = next(s.url for i, s in enumerate(shards) if s.url in {t.url for t in shards[:i]})
        raise ValueError(f"shards: '{double}' is named twice")
    return shards


def _local(pattern: str, folder: Path | None) -> list[str]:
    path = Path(pattern) if folder is None else folder / pattern
    found = [path]
    if any(sign in pattern for sign in "*?["):  # hidden files, macOS' ._000.tar among them, are named by a dot only
        found = sorted(p for p in path.parent.glob(path.name) if path.name[0] == "." or p.name[0] != ".")
    if not found:
        raise ValueError(f"shards: no file is called '{path}'")
    # What a file is called is data, too: "pipe:... .tar" stays a file.
    return [f"./{place}" if scheme_of(str(place)) else str(place) for place in found]


def read_index(path: Path) -> list[Shard]:
    """The shards of an index file, ``{"shards": [{"file", "samples", "bytes"}]}``, files below its own folder.

    webdataset's own form, ``{"shardlist": [{"url", "nsamples"}]}``, is read, too. An index is data: commands, URLs and
    files elsewhere are for a configuration to name.

    Raises:
        ValueError: a file that is not such an index, or that names anything but files below its folder.
    """
    shards = []
    for shard in _listed(path):
        problem = _outside(path.parent, shard.url)
        if problem:
            raise DocumentError(
                path, f"names {shard.url!r}, which {problem}; an index names files below its own folder, others are "
                f"named in the YAML, under shards"
            )  # fmt: skip
        shards.append(Shard(str(path.parent / shard.url), shard.samples, shard.size))
    return shards


def _outside(folder: Path, name: str) -> str | None:
    """Why a name in an index is not that of a file below its folder, in words; None where it is."""
    if scheme_of(name):
        return "is a command, a URL or a drive"
    try:
        os.fsencode(name)
    except ValueError:
        return "is not a path below it"
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        return "is not a path below it"
    first, _, below = name.partition("/")
    root = folder / LINKED_FOLDER if first == LINKED_FOLDER and below else folder
    if not Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(root)):
        return "is a link that leads out of it"
    return None


def _listed(path: Path) -> Iterator[Shard]:
    """What an index lists, by the names that stand in it. Raises ValueError."""
    tree = read_json(path)
    lists = [tree[name] for name in ("shards", "shardlist") if name in tree] if isinstance(tree, Mapping) else []
    if not lists or not isinstance(lists[0], list):
        raise DocumentError(path, "is not an index of shards: it has no list 'shards' (or 'shardlist')")
    if not lists[0]:
        raise DocumentError(path, "lists no shards")
    for number, line in enumerate(lists[0]):
        line = line if isinstance(line, Mapping) else {}
        url = line.get("file", line.get("url"))
        if not isinstance(url, str):
            raise DocumentError(path, f"is not an index of shards: shard {number} has no 'file' (or 'url')")
        samples, size = line.get("samples", line.get("nsamples")), line.get("bytes", line.get("filesize"))
        yield Shard(url, _count(path, url, "samples", samples), _count(path, url, "bytes", size))


def _count(path: Path, url: str, what: str, value: Any) -> int | None:
    if value is None or isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_SAMPLES:
        return value
    raise DocumentError(path, f"is not an index of shards: the {what} of '{url}' are no number that can be")


def check_local(shard: Shard, sequential: bool) -> tuple[Shard, str | None]:
    """A local shard with its size, and what is wrong with it; one without an index is scanned unless `sequential`."""
    path = Path(local_path(shard.url))
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        return replace(shard, samples=0), f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if problem := irregular(found):
        return replace(shard, samples=0), problem
    size = found.st_size
    plain = path.suffix == ".tar"
    if shard.samples is not None:
        changed = shard.size is not None and shard.size != size or plain and shard.samples * BLOCK > size
        if not changed or sequential:
            stated = f"{shard.size} and {shard.samples} samples"
            return shard, f"has {size} bytes, its index says {stated}" if changed else None
    elif sequential or not plain:
        return shard, "is empty (0 bytes)" if size == 0 else None
    table = scan(path)
    problem = table.problem
    if shard.samples is not None:
        problem = (
            problem or f"has {size} bytes and {len(table)} samples, its index says {shard.size} and {shard.samples}"
        )
    return Shard(shard.url, len(table), size), problem
