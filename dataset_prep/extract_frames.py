"""Frames of videos -> folders of JPEG files, which the video processor reads like a video, and much faster.

Every video below SOURCE gives DEST/<same path>/00000.jpg ...: --frames N of them, the middle frames of equal parts;
or the frames on show at --fps per second, by the video's time stamps.

  python -m dataset_prep.extract_frames msrvtt/videos --out msrvtt/frames_fps4 --fps 4
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from chatbridge.datasets.base import sample_errors
from chatbridge.processors import VideoProcessor
from dataset_prep.extract_audio import files_below, video_items
from dataset_prep.prep.command import make_parser, options, positive, run_command, whole
from dataset_prep.prep.frames import write_frames
from dataset_prep.prep.items import UNREADABLE, Drop, Item, PieceResult
from dataset_prep.prep.job import Job, hash_of, summary


@dataclass
class FrameExtractor:
    """Work: one folder of frames per video."""

    root: Path
    out: Path
    frames: int
    fps: float
    size: int
    quality: int

    def __call__(self, number: int, items: list[Item]) -> PieceResult:
        part = PieceResult(read=len(items))
        for item in items:
            folder = self.out / item.id
            try:
                with sample_errors:
                    count = write_frames(self.root / item.where, folder, self.frames, self.fps, self.size, self.quality)
            except ValueError as error:
                part.dropped.append(Drop(item.id, UNREADABLE, getattr(error, "reason", str(error)), item.where))
                continue
            sizes = [file.stat().st_size for file in sorted(folder.glob("*.jpg"))]
            part.kept.append({"folder": item.id, "video": item.where, "frames": count, "bytes": sum(sizes)})
            totals = part.media.setdefault("video", [0, 0, 0])
            totals[:] = totals[0] + 1, totals[1] + sum(sizes), totals[2] + hash_of(f"{item.id}\0{sizes}")
        return part


def body(args: argparse.Namespace) -> None:
    if (args.frames is None) == (args.fps is None):
        raise ValueError("give either --frames or --fps")
    names = files_below(args.source, VideoProcessor.extensions)
    settings = {"source": str(args.source.resolve()), "frames": args.frames, "fps": args.fps}
    job = Job(
        name="extract_frames",
        out=args.out,
        items=lambda: video_items(args.source, names),
        work=FrameExtractor(args.source, args.out, args.frames or 0, args.fps or 0.0, args.size, args.quality),
        settings=settings | {"size": args.size, "quality": args.quality},
        total=lambda: len(names),
        listing="files.json",
        chunk=16,
        unit=" videos",
    )
    print(summary(job.run(options(args)), args.out))


def _above_zero(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("extract_frames", __doc__, source="folder of videos", media=False)
    parser.add_argument("--frames", type=positive, help="so many of every video")
    parser.add_argument("--fps", type=_above_zero, help="so many per second of video")
    parser.add_argument("--size", type=whole, default=256, help="pixels of the shorter side (256); 0 keeps the video's")
    parser.add_argument("--quality", type=positive, default=90, help="of the JPEG files, 1 to 95 (90)")
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
