"""Configurations of runs that are killed, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

from tests import tiny
from tests.datasets.tools import tar_bytes


def prepare(folder, task="alignment", storage="folder", **run):
    """A run folder's YAML: dropout on, shards instead of folders where asked for."""
    tree = tiny.make_config(folder, task, **{"max_steps": 12, "checkpoint_every": 4, "deterministic": True, **run})
    for bridge in tree["model"]["bridges"].values():
        bridge["perceiver"]["dropout"] = 0.1
    if storage != "folder":
        tree["datasets"] = {n: write_tars(folder / "tars" / n, d, storage) for n, d in tree["datasets"].items()}
    return tiny.write_yaml(folder, tree)


def write_tars(folder, dataset, access):
    """The configuration of a dataset whose entries and media were moved into three tars."""
    entries = json.loads(Path(dataset["annotations"]).read_text())
    folder.mkdir(parents=True)
    for shard in range(3):
        samples = []
        for number in range(shard, len(entries), 3):
            entry = {"id": str(number)} | entries[number]
            files = [Path(root) / entry[f"{modality}_id"] for modality, root in dataset["media"].items()]
            media = {f"{number}{file.suffix}": file.read_bytes() for file in files}
            samples.append({f"{number}.json": json.dumps(entry).encode()} | media)
        (folder / f"{shard:03d}.tar").write_bytes(tar_bytes(samples))
    kept = {name: value for name, value in dataset.items() if name not in ("annotations", "media")}
    return kept | {"builder": "webdataset", "folder": str(folder), "access": access, "weight": 1, "shuffle": 5}


def metrics_so_far(output) -> list[str]:
    return (output / "metrics.jsonl").read_text().splitlines()
