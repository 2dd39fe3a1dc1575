"""How fast training data is read: ``python -m benchmarks.data_loading``.

For JPEG folders, JPEG tars, MP4 video (4 frames) and WAV and FLAC sounds, made by this script, are timed:

  decode    the usual decoder over the same files in a loop: Pillow to an RGB array, decord, soundfile
  quickest  the quickest call for the same: torchvision from bytes, soundfile to 16 bits. No reading can pass that
  load      the processor over the same files in a loop: decoding and those transforms that the workers do
  read      training's whole way, from plan to collated batch, with 0, 1 and 2 workers
  waiting   the share of a step that training waits for data when a step takes as long as --step seconds (simulated by
            sleeping, as a processor does while a GPU computes)

with ``finish: device`` (normalising and filter banks are left to the model's device, where they are not timed) and with
``finish: worker``. The row "nothing" reads the bytes of small pictures and decodes none of them: what a sample costs
besides its medium.

Items per second are per core: divided by the processor time that all processes together used, so that a machine with
other work to do gives nearly the same numbers. What workers do is compared with as many processes that decode on the
same cores, at the same time: cores differ, those of a virtual machine above all, and are slower when both are busy. The
measurements take turns, and of each the best one counts. --plan takes what ``train.py --plan --json`` printed and tells
how many cores feed that run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import psutil
import soundfile
import torch
from PIL import Image

from benchmarks.media_files import pictures, sounds, tars, videos
from chatbridge.datasets import (
    AnnotatedDataset,
    AnnotationsConfig,
    BatchStream,
    Collator,
    MixtureReader,
    Parts,
    ShardDataset,
    StepMixture,
    Stream,
    TaskDataset,
    WebdatasetConfig,
)
from chatbridge.processors.audio import AudioConfig, AudioProcessor
from chatbridge.processors.image import ImageConfig, ImageProcessor
from chatbridge.processors.jpeg_files import decode_plain
from chatbridge.processors.pixels import RawPixels
from chatbridge.processors.sampling import frame_groups, pick
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.processors.video import VideoConfig, VideoProcessor
from chatbridge.tasks import AlignmentConfig, AlignmentTask

TOKENIZER = Path(__file__).parent.parent / "tests" / "golden" / "tokenizer"
WORKERS = (0, 1, 2)
KINDS = ("folder", "tar", "video", "wav", "flac", "nothing")
FINISH = ("device", "worker")
CORES = (sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0, 1])[:2]
CORES_OF = {0: [], 1: CORES[-1:], 2: CORES}
"""Where workers run: this process has the first core."""
CHANCE = random.Random(0)
"""Which frames the plain loop decodes; as in training, others each time."""


@dataclass
class Corpus:
    """One kind of data: its files, two ways of decoding one by nothing but a decoder, and the dataset over them."""

    name: str
    modality: str
    files: list[Path]
    decode: Callable[[Path], Any]
    quickest: Callable[[Path], Any]
    dataset: Callable[[int], TaskDataset]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each measurement, thrice that of videos (0.7)")
    parser.add_argument("--turns", type=int, default=15, help="of all measurements, of which the best count (15)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples per batch, of videos an eighth (32)")
    parser.add_argument("--step", type=float, default=0.36, help="seconds of the simulated step (default: 0.36)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("--finish", nargs="+", choices=FINISH, default=list(FINISH), help="default: both")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of a tokenizer")
    parser.add_argument("--plan", type=Path, nargs="+", default=[], help="plans in JSON: how many cores feed them")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        made = {finish: make(Path(folder), args, finish) for finish in args.finish}
        for name in args.only:
            rows |= measure({finish: made[finish][name] for finish in args.finish if name in made[finish]}, args)
    show(rows, args.step)
    for plan in args.plan:
        cores(rows, json.loads(plan.read_text()))
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


def measure(corpora: dict[str, Corpus], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All numbers of one corpus by way of finishing: items per second of processor time, and shares.

    The measurements take turns, and of each the best turn counts: other work on the machine, of which a virtual one
    does not know, only ever slows them down.
    """
    first = next(iter(corpora.values()))
    seconds = args.seconds * (3 if first.modality == "video" else 1)  # some dozens, for none is as long as another
    pin(os.getpid(), CORES[:1])
    readings = {(f, w): Reading(c, args, w) for f, c in corpora.items() for w in WORKERS}
    rows: dict[str, dict[str, Any]] = {finish: {} for finish in corpora}
    with Crowd(first) as crowd:
        for turn in range(args.turns):
            print(f"{first.name}: turn {turn + 1} of {args.turns} ...", file=sys.stderr, flush=True)
            plain = {
                "decode_0": rate(map(first.decode, cycle(first.files)), seconds),
                "decode_1": crowd.decode(CORES_OF[1], seconds),
                "decode_2": crowd.decode(CORES_OF[2], seconds),
                "quickest": rate(map(first.quickest, cycle(first.files)), seconds),
            }
            for finish, corpus in corpora.items():
                now = {**plain, "load": load_rate(corpus, seconds)}
                for w in WORKERS:
                    now[f"read_{w}"], now[f"wall_{w}"] = readings[finish, w].rates(seconds)
                rows[finish] = {name: max(value, rows[finish].get(name, 0.0)) for name, value in now.items()}
    for finish, row in rows.items():
        for w in WORKERS:
            row[f"of_decode_{w}"] = row[f"read_{w}"] / row[f"decode_{w}"]
            row |= {f"of_{what}_{w}": row[f"read_{w}"] / row[what] for what in ("quickest", "load")}
            row[f"waiting_{w}"] = min(readings[finish, w].waiting(args.step, 6 * args.step) for _ in range(3))
    return {f"{first.name} {finish}": row for finish, row in rows.items()}


def pin(process: int, cores: Iterable[int]) -> None:
    """Let all threads of a process run on these cores only, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


class Crowd:
    """Processes that decode at the same time, one for each core."""

    def __init__(self, corpus: Corpus):
        fork = multiprocessing.get_context("fork")
        self._pools = {core: fork.Pool(1, initializer=_prepare, initargs=(corpus, core)) for core in CORES}

    def decode(self, cores: Iterable[int], seconds: float) -> float:
        """Items per second of processor time of one of them, while those of these cores decode."""
        return mean(job.get() for job in [self._pools[core].apply_async(_decode, (seconds,)) for core in cores])

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools.values():
            pool.terminate()


def _prepare(corpus: Corpus, core: int) -> None:
    pin(os.getpid(), [core])
    globals()["CORPUS"] = corpus


def _decode(seconds: float) -> float:
    corpus: Corpus = globals()["CORPUS"]
    return rate(map(corpus.decode, cycle(corpus.files)), seconds)


def load_rate(corpus: Corpus, seconds: float) -> float:
    rng = random.Random(0)
    processor = corpus.dataset(1).processors[corpus.modality]
    return rate((processor.load(file, rng) for file in cycle(corpus.files)), seconds)


def rate(items: Iterable[Any], seconds: float) -> float:
    """Items per second of this process' time, over about so many seconds."""
    items = iter(items)
    for _ in range(3):
        next(items)
    started, count = time.process_time(), 0
    while time.process_time() - started < seconds:
        next(items)
        count += 1
    return count / (time.process_time() - started)


class Reading:
    """Training's way of reading a corpus; its workers wait while other things are measured."""

    def __init__(self, corpus: Corpus, args: argparse.Namespace, workers: int):
        self.workers, self.process = workers, psutil.Process()
        before = {child.pid for child in self.process.children()}
        size = args.batch_size if corpus.modality != "video" else max(1, args.batch_size // 8)
        self.batches = stream(corpus.dataset(size), size, workers)
        next(self.batches)
        self.children = [child for child in self.process.children() if child.pid not in before]
        for number, child in enumerate(self.children):
            pin(child.pid, CORES_OF[workers][number : number + 1])

    def cpu(self) -> float:
        """Seconds of processor time of this process and its workers."""
        times = [child.cpu_times() for child in self.children]
        return time.process_time() + sum(t.user + t.system for t in times)

    def rates(self, seconds: float) -> tuple[float, float]:
        """Items per second of processor time, and of wall time."""
        pin(os.getpid(), CORES if self.workers > 1 else CORES[:1])  # beside one worker, on a core of its own
        for _ in range(2 * self.workers + 1):  # what was fetched while others were measured
            next(self.batches)
        begun, started, count = time.perf_counter(), self.cpu(), 0
        while time.perf_counter() - begun < seconds:
            count += len(next(self.batches).ids)
        rates = count / (self.cpu() - started), count / (time.perf_counter() - begun)
        pin(os.getpid(), CORES[:1])
        return rates

    def waiting(self, step: float, seconds: float) -> float:
        """The share of a step that is spent waiting for its batch."""
        begun, waited = time.perf_counter(), 0.0
        while time.perf_counter() - begun < seconds:
            time.sleep(step)
            asked = time.perf_counter()
            next(self.batches)
            waited += time.perf_counter() - asked
        return waited / (time.perf_counter() - begun)


def stream(dataset: TaskDataset, batch_size: int, workers: int) -> BatchStream:
    mixture = StepMixture([Stream(dataset.name, dataset.length, 1.0, batch_size, dataset.order(0))], 0, 100_000)
    reader = MixtureReader([dataset], Collator.of(dataset.parts.tokenizer), 0, 0, 1, workers)
    return BatchStream(reader, mixture, workers, pin=False)


def cycle(files: list[Path]) -> Iterable[Path]:
    while True:
        yield from files


def make(folder: Path, args: argparse.Namespace, finish: str) -> dict[str, Corpus]:
    """Files of everyday sizes: 500 x 375 pictures, 10 s of 340 x 256 video, 10 s of sound."""
    processors = {
        "image": ImageProcessor(ImageConfig(finish=finish)),
        "video": VideoProcessor(VideoConfig(finish=finish)),
        "audio": AudioProcessor(AudioConfig(finish=finish)),
    }
    tokenizer = load_tokenizer(args.tokenizer)
    made: dict[str, Corpus] = {}

    def add(name: str, modality: str, files: list[Path], decode: Callable, quickest: Callable, **own: Any) -> None:
        rows = dict.fromkeys(processors, lambda shape: 32)
        parts = Parts(AlignmentTask(AlignmentConfig()), tokenizer, rows, {**processors, **own})
        kind = {"image": "ti-cap", "video": "tv-cap", "audio": "ta-cap"}[modality]
        if name == "tar":
            keys = {"folder": str(tars(folder / "tars", files)), "kind": kind}
            build = lambda size: ShardDataset(WebdatasetConfig(batch_size=size, **keys), name, parts)  # noqa: E731
        else:
            table = files[0].parent / "list.json"
            entries = [{f"{modality}_id": f.name, "caption": f"{f.stem}: what there is to see"} for f in files]
            table.write_text(json.dumps(entries))
            keys = {"annotations": str(table), "media": {modality: str(table.parent)}, "kind": kind}
            build = lambda size: AnnotatedDataset(AnnotationsConfig(batch_size=size, **keys), name, parts)  # noqa: E731
        made[name] = Corpus(name, modality, files, decode, quickest, build)

    photos = pictures(folder / "pictures", 400) if {"folder", "tar", "nothing"} & set(args.only) else []
    for name in ("folder", "tar"):
        if name in args.only:
            add(name, "image", photos, decode_picture, lambda file: decode_plain(file.read_bytes()))
    if "nothing" in args.only and finish == "device":
        add("nothing", "image", photos, Path.read_bytes, Path.read_bytes, image=Nothing())
    if "video" in args.only:
        add("video", "video", videos(folder / "videos", 16), decode_video, decode_video)
    for ending, hertz in (("wav", 16000), ("flac", 32000)):
        if ending in args.only:
            files = sounds(folder / ending, 100, ending, hertz)
            add(ending, "audio", files, soundfile.read, lambda file: soundfile.read(file, dtype="int16"))
    return made


class Nothing:
    """A processor that reads a file's bytes and looks at none of them."""

    modality, extensions, shape = "image", (".jpg",), (1, 3, 1, 1)

    def load(self, source: Any, rng: random.Random | None = None) -> RawPixels:
        Path(source).read_bytes()
        return RawPixels(torch.zeros(1, 1, 1, 1, 3, dtype=torch.uint8), (0.0,) * 3, (1.0,) * 3)

    def blank(self) -> torch.Tensor:
        return torch.zeros(self.shape)


def decode_picture(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def decode_video(file: Path) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(file), ctx=decord.cpu(0), num_threads=1)
    return reader.get_batch(pick(frame_groups(len(reader), 4), CHANCE)).asnumpy()


def show(rows: dict[str, dict[str, Any]], step: float) -> None:
    print(f"\n{os.cpu_count()} cores; items per second and core (reading: share of decode | of quickest | of load)\n")
    print(
        f"{'':15}{'decode':>8}{'by another':>11}{'by two':>8}{'quickest':>9}{'load':>8}"
        + "".join(f"{f'read, {w} workers':>29}" for w in WORKERS)
    )
    for name, row in rows.items():
        plain = (("decode_0", 8), ("decode_1", 11), ("decode_2", 8), ("quickest", 9), ("load", 8))
        line = f"{name:15}" + "".join(f"{row[what]:{width}.0f}" for what, width in plain)
        for w in WORKERS:
            shares = " |".join(f"{row[f'of_{what}_{w}']:4.0%}" for what in ("decode", "quickest", "load"))
            line += f"{row[f'read_{w}']:11.1f} ({shares})"
        print(line)
    print(f"\nitems per second of wall time (share of a step of {step:g} s spent waiting for data)\n")
    print(f"{'':15}" + "".join(f"{f'{w} workers':>20}" for w in WORKERS))
    for name, row in rows.items():
        print(f"{name:15}" + "".join(f"{row[f'wall_{w}']:12.1f} ({row[f'waiting_{w}']:5.1%})" for w in WORKERS))


def cores(rows: dict[str, dict[str, Any]], plan: dict[str, Any]) -> None:
    """How many cores read as fast as the plan trains, by its datasets' shares."""
    samples, gpus = plan["throughput"]["samples_per_second"], plan["gpus_per_node"] * plan["nodes"]
    corpora = {"image": "folder", "video": "video", "audio": "flac"}
    steps = plan["steps"]
    per_step = sum(s["share"] * s["batch_size"] for s in steps.values())
    for finish in FINISH:
        needed, known = 0.0, True
        for step in steps.values():
            per_second = samples * step["share"] * step["batch_size"] / per_step
            for modality, media in step["expected"]["media"].items():
                row = rows.get(f"{corpora.get(modality)} {finish}")
                known = known and row is not None
                if row is not None:
                    needed += per_second * media["count"] / step["expected"]["samples"] / row["read_2"]
        if known:
            print(
                f"\n{plan['device']['name']} x {gpus}: the plan trains on {samples:.0f} samples per second, which "
                f"{needed:.2f} cores like these read with finish: {finish} ({needed / gpus:.2f} per GPU)"
            )


if __name__ == "__main__":
    sys.exit(main())
