"""What reading training data costs, and whether a step waits for it: ``python -m benchmarks.data_loading``.

For JPEG folders, JPEG tars, MP4 video (4 frames) and WAV and FLAC sounds, made by this script, read on training's whole
way (from plan to collated batch, `--workers` data-loader workers):

  cpu       milliseconds of processor time that a sample takes, all processes together, reading as fast as they can
  cores     that feed one GPU whose step takes `--step` seconds: cpu x batch size / step
  waiting   the share of such a step (simulated by sleeping, as a processor does while a GPU computes) that training
            waits for its batch
  receive   milliseconds of the training thread's own time in that
  memory    MiB of all processes (PSS), and how much they grew by from the first turn to the last

The row "ready" decodes nothing: its processor has a 224-pixel picture at hand. What it costs is annotation, prompt,
tokens, collation and the way to the training process. Measurements are taken in turns, of which the best one counts:
other work on the machine only ever slows them down.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.media_files import pictures, sounds, tars, videos
from chatbridge.common.read_mode import EVALUATION, ReadMode
from chatbridge.datasets import (
    AnnotatedDataset,
    AnnotationsConfig,
    BatchStream,
    Collator,
    Component,
    MixtureReader,
    Parts,
    ShardDataset,
    StepMixture,
    TaskDataset,
    WebdatasetConfig,
)
from chatbridge.processors.audio import AudioConfig, AudioProcessor
from chatbridge.processors.image import ImageConfig, ImageProcessor, RawPixels
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.processors.video import VideoConfig, VideoProcessor
from chatbridge.tasks import AlignmentConfig, AlignmentTask

TOKENIZER = Path(__file__).parent.parent / "tests" / "golden" / "tokenizer"
MODALITIES = {"folder": "image", "tar": "image", "video": "video", "wav": "audio", "flac": "audio", "ready": "image"}
MIB = 2**20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (5)")
    parser.add_argument("--turns", type=int, default=3, help="of all measurements (3)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples of a step, of videos an eighth (32)")
    parser.add_argument("--step", type=float, default=0.36, help="seconds of the simulated step (0.36)")
    parser.add_argument("--workers", type=int, default=1, help="data-loader workers (1)")
    parser.add_argument("--preprocess-on", choices=("device", "worker"), default="device", help="(device)")
    parser.add_argument("--only", nargs="+", choices=list(MODALITIES), default=list(MODALITIES), help="default: all")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    rows = {}
    print(f"{'':8}{'cpu ms':>8}{'cores':>7}{'waiting':>9}{'receive ms':>12}{'memory MiB':>12}{'growth':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            row = rows[name] = measure(name, Path(folder), args)
            print(
                f"{name:8}{row['cpu_ms']:8.2f}{row['cores']:7.2f}{row['waiting']:9.2%}{row['receive_ms']:12.2f}"
                f"{row['memory_mib']:12.0f}{row['growth_mib']:8.1f}",
                flush=True,
            )
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


def measure(name: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """One row of the table."""
    size = max(1, args.batch_size // 8) if name == "video" else args.batch_size
    dataset = corpus(name, folder, size, args.preprocess_on)
    mixture = StepMixture([Component(name, dataset.length, 1.0, size, dataset.order(0))], 0, 100_000)
    reader = MixtureReader([dataset], Collator.of(dataset.parts.tokenizer), 0, 0, 1, args.workers)
    batches = BatchStream(reader, mixture, args.workers, pin=False)
    for _ in range(2 * args.workers + 2):
        next(batches)
    processes, turns = [psutil.Process(), *psutil.Process().children()], []
    for _ in range(args.turns):
        cpu_ms = cpu_per_sample(batches, processes, args.seconds)
        turns.append((cpu_ms, *waiting(batches, args.step, args.seconds), memory(processes) / MIB))
    cpu, share, receive, used_mib = zip(*turns, strict=True)
    return {
        "cpu_ms": min(cpu),
        "cores": min(cpu) * size / args.step / 1000,
        "waiting": min(share),
        "receive_ms": min(receive),
        "memory_mib": used_mib[-1],
        "growth_mib": used_mib[-1] - used_mib[0],
    }


def cpu_per_sample(batches: BatchStream, processes: list[psutil.Process], seconds: float) -> float:
    """Milliseconds of processor time, all processes together."""
    begun, started, count = time.perf_counter(), used(processes), 0
    while time.perf_counter() - begun < seconds:
        count += len(next(batches).ids)
    return 1000 * (used(processes) - started) / count


def waiting(batches: BatchStream, step: float, seconds: float) -> tuple[float, float]:
    """The share of a step that is spent waiting for its batch, and milliseconds of this thread's own time in it."""
    begun, waited, own, steps = time.perf_counter(), 0.0, time.thread_time(), 0
    while time.perf_counter() - begun < seconds:
        time.sleep(step)
        batch = None  # a step lets go of its batch before it asks for the next one
        asked = time.perf_counter()
        batch = next(batches)  # noqa: F841
        waited += time.perf_counter() - asked
        steps += 1
    return waited / (time.perf_counter() - begun), 1000 * (time.thread_time() - own) / steps


def used(processes: list[psutil.Process]) -> float:
    """Seconds of processor time."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def memory(processes: list[psutil.Process]) -> int:
    """Bytes, shared pages shared out."""
    return sum(process.memory_full_info().pss for process in processes)


def corpus(name: str, folder: Path, size: int, preprocess_on: str) -> TaskDataset:
    """A dataset over files of everyday sizes: 500 x 375 pictures, 10 s of 340 x 256 video, 10 s of sound."""
    processors: dict[str, Any] = {
        "image": Ready() if name == "ready" else ImageProcessor(ImageConfig(preprocess_on=preprocess_on)),
        "video": VideoProcessor(VideoConfig(preprocess_on=preprocess_on)),
        "audio": AudioProcessor(AudioConfig(preprocess_on=preprocess_on)),
    }
    modality = MODALITIES[name]
    files = {
        "image": lambda: pictures(folder / "pictures", 400),
        "video": lambda: videos(folder / "videos", 16),
        "audio": lambda: sounds(folder / name, 100, name, 16000 if name == "wav" else 32000),
    }[modality]()
    rows = dict.fromkeys(processors, lambda shape: 32)
    parts = Parts(AlignmentTask(AlignmentConfig()), load_tokenizer(TOKENIZER), rows, processors)
    kind = {"image": "ti-cap", "video": "tv-cap", "audio": "ta-cap"}[modality]
    if name == "tar":
        config = WebdatasetConfig(batch_size=size, folder=str(tars(folder / "tars", files)), kind=kind)
        return ShardDataset(config, name, parts)
    table = files[0].parent / "list.json"
    entries = [{f"{modality}_id": f.name, "caption": f"{f.stem}: what there is to see"} for f in files]
    table.write_text(json.dumps(entries))
    media = {modality: str(table.parent)}
    config = AnnotationsConfig(batch_size=size, annotations=str(table), media=media, kind=kind)
    return AnnotatedDataset(config, name, parts)


class Ready:
    """A processor that looks at no file: it has a picture at hand."""

    modality, extensions, shape = "image", (".jpg",), (1, 3, 224, 224)

    def load(self, source: Any, mode: ReadMode = EVALUATION) -> RawPixels:
        return RawPixels(torch.zeros(1, 1, 224, 224, 3, dtype=torch.uint8), (0.5,) * 3, (0.5,) * 3)

    def blank(self) -> torch.Tensor:
        return torch.zeros(self.shape)


if __name__ == "__main__":
    sys.exit(main())
