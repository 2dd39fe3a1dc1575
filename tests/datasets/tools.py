"""Small datasets in folders and tar shards, and the streams of batches that training would read from them."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from chatbridge.common.batch import MultimodalBatch
from chatbridge.datasets import (
    AnnotatedDataset,
    AnnotationsConfig,
    BatchStream,
    Collator,
    Component,
    MixtureReader,
    Parts,
    SampleMixture,
    ShardDataset,
    StepMixture,
    WebdatasetConfig,
)
from chatbridge.processors.image import ImageConfig, ImageProcessor
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.tasks import AlignmentConfig, AlignmentTask

TOKENIZER = Path(__file__).parents[1] / "golden" / "tokenizer"
WORDS = tuple("a red ball rolls slowly over the green grass towards an old wooden house".split(" "))  # noqa: SIM905


def picture(number: int) -> bytes:
    """A JPEG whose colour tells its number."""
    out = io.BytesIO()
    pixels = np.full((8, 8, 3), (number * 37 % 256, number * 11 % 256, 90), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def caption(number: int) -> str:
    return " ".join(WORDS[: 1 + number * 7 % len(WORDS)])


def tar_bytes(samples: list[dict[str, bytes]]) -> bytes:
    """A tar; each sample is name -> bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for sample in samples:
            for name, data in sample.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sample(key: str, number: int, **more: bytes) -> dict[str, bytes]:
    entry = {"id": key, "image_id": f"{key}.jpg", "caption": caption(number)}
    return {f"{key}.jpg": picture(number), f"{key}.json": json.dumps(entry).encode()} | {
        f"{key}.{ending}": data for ending, data in more.items()
    }


def write_shards(folder: Path, sizes: list[int], index: bool = False) -> list[str]:
    """Tars 000.tar, 001.tar ... of so many samples; returns all ids, shard by shard."""
    folder.mkdir(parents=True, exist_ok=True)
    ids, lines = [], []
    for shard, size in enumerate(sizes):
        keys = [f"{folder.name}{shard}x{i}" for i in range(size)]
        file = folder / f"{shard:03d}.tar"
        file.write_bytes(tar_bytes([sample(key, len(ids) + i) for i, key in enumerate(keys)]))
        lines.append({"file": file.name, "samples": size, "bytes": file.stat().st_size})
        ids += keys
    if index:
        (folder / "index.json").write_text(json.dumps({"format": "webdataset", "shards": lines}))
    return ids


def write_folder(folder: Path, count: int) -> Path:
    """Pictures and their annotation file; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(picture(i))
        entries.append({"id": f"{folder.name}{i}", "image_id": f"{i}.jpg", "caption": caption(i)})
    (folder / "list.json").write_text(json.dumps(entries))
    return folder / "list.json"


def two_rows(shape: tuple[int, ...]) -> int:
    """Of a model that makes two of any medium."""
    return 2


def parts(seed: int = 3) -> Parts:
    processors = {"image": ImageProcessor(ImageConfig(image_size=8))}
    return Parts(
        AlignmentTask(AlignmentConfig()), load_tokenizer(TOKENIZER), {"image": two_rows}, processors, seed
    )  # fmt: skip


def shards(folder: Path, name: str = "shards", **keys: Any) -> ShardDataset:
    if "shards" not in keys:
        keys["folder"] = str(folder)
    return ShardDataset(
        WebdatasetConfig(kind="ti-cap", **{"batch_size": 4, "retry_seconds": 0.0} | keys), name, parts()
    )


def folder_set(folder: Path, name: str = "folder", **keys: Any) -> AnnotatedDataset:
    config = AnnotationsConfig(
        kind="ti-cap", annotations=str(folder / "list.json"), media={"image": str(folder)}, **{"batch_size": 4} | keys
    )
    return AnnotatedDataset(config, name, parts())


def stream(
    datasets: list, steps: int = 60, rank: int = 0, world: int = 1, workers: int = 0, seed: int = 3,
    mixed: int | None = None,
) -> BatchStream:  # fmt: skip
    """What `Assembly` builds from a configuration, without one. `mixed`: samples of a batch of several datasets."""
    components = []
    for dataset in datasets:
        streamed = dataset.sequential or dataset.config.batch_tokens is not None
        weight = dataset.config.weight or 1.0
        order = None if streamed else dataset.order(seed)
        components.append(Component(dataset.name, dataset.length, weight, dataset.config.batch_size, order, streamed))
    mixture = SampleMixture(components, seed, steps, mixed) if mixed else StepMixture(components, seed, steps)
    reader = MixtureReader(datasets, Collator.of(dataset.parts.tokenizer), seed, rank, world, workers)
    return BatchStream(reader, mixture, workers, pin=False)


def take(stream: BatchStream, count: int) -> list[MultimodalBatch]:
    return [next(stream) for _ in range(count)]


def through_disk(state: Any) -> Any:
    """As a checkpoint keeps it: tensors and plain values only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def names(batches: list[MultimodalBatch]) -> list[tuple[str, list[str]]]:
    return [(batch.dataset, batch.ids) for batch in batches]


class Reader:
    """Reads entries of an annotated dataset, as a data-loader worker does with the samples it is asked for."""

    def __init__(self, dataset: AnnotatedDataset):
        self.dataset = dataset

    def __getitems__(self, indices: range) -> int:
        return sum(len(self.dataset.record(i).captions) for i in indices)


def pss(processes: list[int], file: str) -> int:
    """Bytes of their own memory and of a mapped file that processes use together, shared pages counted once.

    Other mapped files are left out: their pages are libraries', shared with whatever else runs on the machine, so
    that this program's part of them changes when a stranger starts or ends.
    """
    total = 0
    for process in processes:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += 1024 * int(line.split()[1])
        mapped = False
        for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
            name = line.split(maxsplit=5)
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                mapped = len(name) == 6 and name[5] == file
            elif mapped and line.startswith("Pss:"):
                total += 1024 * int(name[1])
    return total


def memory(dataset: AnnotatedDataset, workers: int, passes: int) -> list[int]:
    """PSS of this process and `workers` forked ones after each pass over an annotation file.

    An entry of a few hundred bytes is read in every half page: that touches all that reading every entry would.
    """
    length, share = len(dataset), max(1, workers)
    rounds = max(1, length // 20_000)
    pieces = [
        range(n, length, 10 * rounds) for _ in range(passes) for n in range(0, 10 * rounds, 10) for _ in range(share)
    ]
    loader = DataLoader(
        Reader(dataset),
        batch_sampler=pieces,
        num_workers=workers,
        collate_fn=int,
        **({"prefetch_factor": 1} if workers else {}),
    )
    batches, totals = iter(loader), []
    for number, _ in enumerate(batches, 1):
        if number % (rounds * share) == 0:
            children = [worker.pid for worker in batches._workers] if workers else []
            totals.append(pss([os.getpid(), *children], str(Path(dataset.config.annotations).resolve())))
    return totals


def memory_report(small: str, large: str, workers: int) -> dict[str, Any]:
    """Growth in bytes from a tiny to a large annotation file: of one process, and of one with workers, pass by pass."""

    def dataset(file: str) -> AnnotatedDataset:
        config = AnnotationsConfig(kind="ti-cap", annotations=file, media={"image": str(Path(file).parent)})
        return AnnotatedDataset(config, "captions", shared)

    shared = parts()
    tiny = dataset(small)
    base, bases = memory(tiny, 0, 1)[0], memory(tiny, workers, 1)[0]
    started = time.perf_counter()
    full = dataset(large)
    seconds = time.perf_counter() - started
    one = memory(full, 0, 1)[0] - base
    return {"one": one, "all": [total - bases for total in memory(full, workers, 4)], "load_seconds": seconds}
