"""Webdataset tars: written with the same bytes every time, and listed in an ``index.json``.

A sample is the files that share a name up to its first dot: ``000001.jpg`` and ``000001.json``. The index is
``{"format": "webdataset", "kind": ..., "samples": n, "shards": [{"file", "samples", "bytes", "sha256"}, ...]}`` with
files relative to its folder.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset_prep.prep.job import sha256, write_json

INDEX = "index.json"


class TarWriter:
    """Writes samples to a tar that appears under its name when it is complete.

    The same samples give the same bytes: no times, owners or permissions of the source are taken over.
    """

    def __init__(self, path: Path):
        self.path = path
        self._temporary = path.with_name(path.name + ".part")
        self.samples = 0

    def __enter__(self) -> TarWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tar = tarfile.open(self._temporary, "w", format=tarfile.PAX_FORMAT)
        return self

    def add(self, key: str, members: Mapping[str, bytes | Path], entry: Mapping[str, Any]) -> None:
        """One sample: ``<key>.<ending>`` of every member, then ``<key>.json``."""
        for ending, data in members.items():
            if isinstance(data, bytes):
                self._add(f"{key}.{ending}", len(data), io.BytesIO(data))
            else:
                with data.open("rb") as file:
                    self._add(f"{key}.{ending}", os.fstat(file.fileno()).st_size, file)
        text = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace")
        self._add(f"{key}.json", len(text), io.BytesIO(text))
        self.samples += 1

    def _add(self, name: str, size: int, file: Any) -> None:
        info = tarfile.TarInfo(name)
        info.size = size
        self._tar.addfile(info, file)

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._tar.close()
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)

    def line(self) -> dict[str, Any]:
        """The finished tar's line for the index."""
        size = self.path.stat().st_size
        return {"file": self.path.name, "samples": self.samples, "bytes": size, "sha256": sha256(self.path)}


def write_index(folder: Path, kind: str, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Write ``index.json``; returns what the manifest says of it."""
    names = [shard["file"] for shard in shards]
    index = {"format": "webdataset", "kind": kind, "samples": sum(s["samples"] for s in shards), "shards": shards}
    write_json(folder / INDEX, index)
    return {"files": {INDEX: sha256(folder / INDEX)}, "shards": len(names), "samples": index["samples"]}
