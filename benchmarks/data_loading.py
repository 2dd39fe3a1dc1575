"""How fast training data is read: ``python -m benchmarks.data_loading``.

For JPEG folders, JPEG tars, MP4 video (4 frames) and WAV and FLAC sounds, made by this script, four things are timed:

  decode    the decoder alone over the same files in a loop: the limit that no reading can pass
  load      the processor over the same files in a loop: decoding and what the encoder needs on top of it (resizing,
            normalising, filter banks)
  read      training's whole way, from plan to collated batch, with 0, 1 and 2 workers
  waiting   the share of a step that training waits for data when a step takes as long as --step seconds (simulated by
            sleeping, as a processor does while a GPU computes)

Items per second are per core: divided by the processor time that all processes together used, so that a machine with
other work to do gives nearly the same numbers. --plan takes what ``train.py --plan --json`` printed and tells how many
cores feed that run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from PIL import Image

from chatbridge.datasets import (
    AnnotatedDataset,
    AnnotationsConfig,
    BatchStream,
    Collator,
    Mixture,
    MixtureReader,
    Parts,
    ShardDataset,
    Stream,
    TaskDataset,
    WebdatasetConfig,
)
from chatbridge.processors.audio import AudioConfig, AudioProcessor
from chatbridge.processors.image import ImageConfig, ImageProcessor
from chatbridge.processors.sampling import frame_groups, pick
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.processors.video import VideoConfig, VideoProcessor
from chatbridge.tasks import AlignmentConfig, AlignmentTask

TOKENIZER = Path(__file__).parent.parent / "tests" / "golden" / "tokenizer"
WORKERS = (0, 1, 2)


@dataclass
class Corpus:
    """One kind of data: its files, how one is decoded by nothing but its decoder, and the dataset over them."""

    name: str
    modality: str
    files: list[Path]
    decode: Callable[[Path], Any]
    dataset: Callable[[int], TaskDataset]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, about (default: 4)")
    parser.add_argument("--turns", type=int, default=3, help="of all measurements, for the median (default: 3)")
    parser.add_argument("--batch-size", type=int, default=16, help="samples per batch (default: 16)")
    parser.add_argument("--step", type=float, default=0.25, help="seconds of the simulated step (default: 0.25)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of: folder tar video wav flac")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of a tokenizer")
    parser.add_argument("--plan", type=Path, help="a plan in JSON: how many cores feed it")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory() as folder:
        corpora = [c for c in make(Path(folder), args) if not args.only or c.name in args.only]
        if not corpora:
            print(f"error: --only {' '.join(args.only)}: known are folder tar video wav flac", file=sys.stderr)
            return 1
        rows = {corpus.name: measure(corpus, args) for corpus in corpora}
    show(rows, args.step)
    if args.plan is not None:
        cores(rows, json.loads(args.plan.read_text()))
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


def measure(corpus: Corpus, args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one corpus: items per second of processor time, and shares of waiting.

    The measurements take turns, and each ratio is of one turn: how fast a core is changes with what else it does.
    """
    dataset = corpus.dataset(args.batch_size)
    processor = dataset.processors[corpus.modality]
    rng = random.Random(0)
    turns = []
    for turn in range(args.turns):
        print(f"{corpus.name}: turn {turn + 1} of {args.turns} ...", file=sys.stderr, flush=True)
        found = {"decode": rate(map(corpus.decode, cycle(corpus.files)), args.seconds)}
        found["load"] = rate((processor.load(file, rng) for file in cycle(corpus.files)), args.seconds)
        for workers in WORKERS:
            found[f"read_{workers}"], found[f"wall_{workers}"] = read(corpus, args, workers)
            found[f"of_decode_{workers}"] = found[f"read_{workers}"] / found["decode"]
            found[f"of_load_{workers}"] = found[f"read_{workers}"] / found["load"]
        turns.append(found)
    row = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    return row | {f"waiting_{workers}": waiting(corpus, args, workers) for workers in WORKERS}


def rate(items: Iterable[Any], seconds: float) -> float:
    """Items per second of processor time, over about so many seconds."""
    items = iter(items)
    for _ in range(3):
        next(items)
    started, count = cpu(), 0
    while cpu() - started < seconds:
        next(items)
        count += 1
    return count / (cpu() - started)


def cpu() -> float:
    """Seconds of processor time of this process and of those of its children that have ended."""
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def read(corpus: Corpus, args: argparse.Namespace, workers: int) -> tuple[float, float]:
    """(items per second of processor time, items per second of wall time) of training's way of reading."""
    batches = stream(corpus.dataset(args.batch_size), args.batch_size, workers)
    next(batches)
    begun, started, count = time.perf_counter(), cpu(), 0
    while time.perf_counter() - begun < args.seconds:
        count += len(next(batches).ids)
    wall = time.perf_counter() - begun
    fetched_ahead = 2 * workers * args.batch_size  # the workers have read these, too (PyTorch's prefetch factor)
    del batches  # ends the workers: only then does the system account for their time
    return (count + fetched_ahead + (args.batch_size if workers else 0)) / (cpu() - started), count / wall


def waiting(corpus: Corpus, args: argparse.Namespace, workers: int) -> float:
    """The share of a step that is spent waiting for its batch."""
    batches = stream(corpus.dataset(args.batch_size), args.batch_size, workers)
    next(batches)
    begun, waited = time.perf_counter(), 0.0
    while time.perf_counter() - begun < args.seconds:
        time.sleep(args.step)
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - begun)


def stream(dataset: TaskDataset, batch_size: int, workers: int) -> BatchStream:
    mixture = Mixture([Stream(dataset.name, dataset.length, 1.0, batch_size, dataset.order(0))], 0, 100_000)
    reader = MixtureReader([dataset], Collator.of(dataset.parts.tokenizer), 0, 0, 1, workers)
    return BatchStream(reader, mixture, workers, pin=False)


def cycle(files: list[Path]) -> Iterable[Path]:
    while True:
        yield from files


def make(folder: Path, args: argparse.Namespace) -> list[Corpus]:
    """Files of everyday sizes: 500 x 375 pictures, 10 s of 340 x 256 video, 10 s of sound."""
    processors = {
        "image": ImageProcessor(ImageConfig()),
        "video": VideoProcessor(VideoConfig()),
        "audio": AudioProcessor(AudioConfig()),
    }
    tokenizer = load_tokenizer(args.tokenizer)
    parts = Parts(AlignmentTask(AlignmentConfig()), tokenizer, dict.fromkeys(processors, 32), processors)
    wanted = set(args.only or ("folder", "tar", "video", "wav", "flac"))
    made = []

    def annotated(name: str, modality: str, files: list[Path]) -> Callable[[int], TaskDataset]:
        entries = [
            {f"{modality}_id": f.name, "caption": f"{f.stem}: what there is to see or hear in it"} for f in files
        ]
        (files[0].parent / "list.json").write_text(json.dumps(entries))
        kind = {"image": "ti-cap", "video": "tv-cap", "audio": "ta-cap"}[modality]
        keys = {"annotations": str(files[0].parent / "list.json"), "media": {modality: str(files[0].parent)}}
        return lambda size: AnnotatedDataset(AnnotationsConfig(kind=kind, batch_size=size, **keys), name, parts)

    if wanted & {"folder", "tar"}:
        files = pictures(folder / "pictures", 400)
        if "folder" in wanted:
            made.append(Corpus("folder", "image", files, decode_picture, annotated("folder", "image", files)))
        if "tar" in wanted:
            shards = tars(folder / "tars", files)
            config = {"folder": str(shards), "kind": "ti-cap"}
            build = lambda size: ShardDataset(WebdatasetConfig(batch_size=size, **config), "tar", parts)  # noqa: E731
            made.append(Corpus("tar", "image", files, decode_picture, build))
    if "video" in wanted:
        files = videos(folder / "videos", 16)
        made.append(Corpus("video", "video", files, decode_video, annotated("video", "video", files)))
    for ending, rate_hz in (("wav", 16000), ("flac", 32000)):
        if ending in wanted:
            files = sounds(folder / ending, 100, ending, rate_hz)
            made.append(Corpus(ending, "audio", files, soundfile.read, annotated(ending, "audio", files)))
    return made


def decode_picture(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def decode_video(file: Path) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(file), ctx=decord.cpu(0), num_threads=1)
    return reader.get_batch(pick(frame_groups(len(reader), 4), random.Random(len(str(file))))).asnumpy()


def pictures(folder: Path, count: int) -> list[Path]:
    """JPEGs with the detail of photographs: smooth areas, edges and grain."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 6, (375, 500, 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        files.append(folder / f"{i:05d}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=88)
    return files


def tars(folder: Path, files: list[Path]) -> Path:
    folder.mkdir()
    for shard in range(0, len(files), 100):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for file in files[shard : shard + 100]:
                tar.add(file, file.name)
                text = file.with_suffix(".json")
                text.write_text(json.dumps({"image_id": file.name, "caption": f"{file.stem}: what there is to see"}))
                tar.add(text, text.name)
    return folder


def videos(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        files.append(folder / f"{i:03d}.mp4")
        picture = np.asarray(Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8)).resize((440, 356)))
        with av.open(str(files[-1]), "w") as container:
            track = container.add_stream("libx264", rate=25)
            track.width, track.height, track.pix_fmt = 340, 256, "yuv420p"
            for frame in range(250):
                at = frame * 2 // 5
                part = np.ascontiguousarray(picture[at : at + 256, at : at + 340])
                container.mux(track.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
            container.mux(track.encode(None))
    return files


def sounds(folder: Path, count: int, ending: str, rate_hz: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        files.append(folder / f"{i:03d}.{ending}")
        t = np.arange(10 * rate_hz) / rate_hz
        wave = 0.3 * np.sin(2 * np.pi * (200 + 20 * i) * t) + rng.normal(0, 0.02, len(t))
        soundfile.write(files[-1], wave.astype(np.float32), rate_hz, subtype="PCM_16")
    return files


def show(rows: dict[str, dict[str, Any]], step: float) -> None:
    print(f"\n{os.cpu_count()} cores; items per second and core (of the decoder's | of the processor's)\n")
    print(f"{'':8}{'decode':>9}{'load':>9}" + "".join(f"{f'read, {w} workers':>26}" for w in WORKERS))
    for name, row in rows.items():
        line = f"{name:8}{row['decode']:9.1f}{row['load']:9.1f}"
        for w in WORKERS:
            line += f"{row[f'read_{w}']:10.1f} ({row[f'of_decode_{w}']:4.0%} | {row[f'of_load_{w}']:4.0%})"
        print(line)
    print(f"\nitems per second of wall time; share of a step of {step:g} s spent waiting for data\n")
    print(f"{'':8}" + "".join(f"{f'{w} workers':>20}" for w in WORKERS))
    for name, row in rows.items():
        print(f"{name:8}" + "".join(f"{row[f'wall_{w}']:12.1f} ({row[f'waiting_{w}']:5.1%})" for w in WORKERS))


def cores(rows: dict[str, dict[str, Any]], plan: dict[str, Any]) -> None:
    """How many cores read as fast as the plan trains, by its datasets' shares."""
    samples, gpus = plan["throughput"]["samples_per_second"], plan["gpus_per_node"] * plan["nodes"]
    corpora = {"image": "folder", "video": "video", "audio": "flac"}
    steps = plan["steps"]
    per_step = sum(s["share"] * s["batch_size"] for s in steps.values())
    needed = 0.0
    for step in steps.values():
        per_second = samples * step["share"] * step["batch_size"] / per_step
        for modality, media in step["expected"]["media"].items():
            if corpora.get(modality) in rows:
                each = media["count"] / step["expected"]["samples"]
                needed += per_second * each / rows[corpora[modality]]["read_2"]
    print(
        f"\n{plan['device']['name']} x {gpus}: the plan trains on {samples:.0f} samples per second, which "
        f"{needed:.2f} cores like these read ({needed / gpus:.2f} per GPU)"
    )


if __name__ == "__main__":
    sys.exit(main())
