"""Sound tracks of videos -> audio files, so that training does not unpack a video for its sound.

Every video below SOURCE gives DEST/<same path>.flac (or .wav), at its own rate and channels unless asked otherwise:
the audio processor resamples in the way the published numbers need.

  python -m dataset_prep.extract_audio msrvtt/videos --out msrvtt/audio
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chatbridge.datasets.base import sample_errors
from chatbridge.processors import MediaError, VideoProcessor
from chatbridge.processors.base import media_errors
from chatbridge.processors.resampling import resample
from chatbridge.processors.sound_files import read_sound
from dataset_prep.prep.command import make_parser, options, positive, run_command
from dataset_prep.prep.items import UNREADABLE, Drop, Item, PieceResult
from dataset_prep.prep.job import Job, sha256, summary

SILENT = "no sound track"


def files_below(root: Path, extensions: tuple[str, ...]) -> list[str]:
    """Names relative to `root` of all files with one of the endings, in name order.

    Raises:
        ValueError: when the folder does not exist or holds none.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    found = []
    for folder, _, names in os.walk(root, followlinks=True):
        relative = Path(os.path.relpath(folder, root))
        # macOS leaves a ._x.mp4 beside an x.mp4.
        names = [name for name in names if Path(name).suffix.lower() in extensions and not name.startswith(".")]
        found += [(relative / name).as_posix() for name in names]
    if not found:
        raise ValueError(f"{root} holds no files that end in {' '.join(extensions)}")
    return sorted(found)


@dataclass
class AudioExtractor:
    """Work: one audio file per video."""

    root: Path
    out: Path
    audio_format: str
    rate: int | None
    mono: bool
    max_seconds: float

    def __call__(self, number: int, items: list[Item]) -> PieceResult:
        part = PieceResult(read=len(items))
        for item in items:
            try:
                with sample_errors:
                    part.kept.append(self._one(item))
            except ValueError as error:
                detail = getattr(error, "reason", str(error))
                reason = SILENT if SILENT in detail else UNREADABLE
                part.dropped.append(Drop(item.id, reason, detail, item.where))
        return part

    def _one(self, item: Item) -> dict:
        import soundfile

        waveform, rate = read_sound(self.root / item.where, self.max_seconds)
        if waveform.shape[1] == 0:
            raise MediaError(item.where, "its sound track has no samples")
        if self.mono:
            waveform = waveform.mean(0, keepdim=True)
        if self.rate and self.rate != rate:
            with media_errors(item.where, "cannot be resampled"):
                waveform, rate = resample(waveform, rate, self.rate), self.rate
        target = self.out / f"{item.id}.{self.audio_format}"
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        samples = waveform.clamp(-1, 1).T.numpy()
        try:
            soundfile.write(temporary, samples, rate, format=self.audio_format.upper(), subtype="PCM_16")
        except soundfile.LibsndfileError as error:  # FLAC knows eight channels at most, and not every rate
            temporary.unlink(missing_ok=True)
            raise MediaError(item.where, f"cannot be written as {self.audio_format}: {error}") from error
        os.replace(temporary, target)
        channels, length = waveform.shape
        facts = {"rate": rate, "channels": channels, "samples": length, "bytes": target.stat().st_size}
        return {"file": f"{item.id}.{self.audio_format}", "video": item.where, **facts, "sha256": sha256(target)}


def video_items(root: Path, names: list[str]) -> Iterator[Item]:
    """One item per video; two that differ only in their ending would give the same file: the second is left out."""
    for name in names:
        yield Item(Path(name).with_suffix("").as_posix(), {}, {}, name)


def body(args: argparse.Namespace) -> None:
    names = files_below(args.source, VideoProcessor.extensions)
    settings = {"source": str(args.source.resolve()), "format": args.format, "rate": args.rate, "mono": args.mono}
    job = Job(
        name="extract_audio",
        out=args.out,
        items=lambda: video_items(args.source, names),
        work=AudioExtractor(args.source, args.out, args.format, args.rate, args.mono, args.max_seconds),
        settings=settings | {"max_seconds": args.max_seconds},
        total=lambda: len(names),
        listing="files.json",
        chunk=16,
        unit=" videos",
    )
    print(summary(job.run(options(args)), args.out))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("extract_audio", __doc__, source="folder of videos", media=False)
    parser.add_argument("--format", choices=("flac", "wav"), default="flac", help="of the files (flac)")
    parser.add_argument("--rate", type=positive, help="resample to this many Hz; by default as in the video")
    parser.add_argument("--mono", action="store_true", help="mix the channels")
    parser.add_argument("--max-seconds", type=float, default=3600.0, help="leave out longer tracks (3600)")
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
