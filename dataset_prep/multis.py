"""MULTIS: the instruction-tuning mixture of stage 2, from its sources or from its own annotation files.

SOURCE is a folder with whatever was downloaded, in any depth: annotation files are found by name, media folders by
the names below. A dataset whose files are not there is left out, and said so. Written are DEST/<dataset>/ (annotations
with their task kind, media links, manifest) for each, and DEST/mixture.yaml, a ``datasets:`` section with the
published weights and batch sizes.

  python -m dataset_prep.multis downloads --out data --media audiocaps.audio=audiocaps/train
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from chatbridge.common.registry import nearest
from chatbridge.datasets import TaskKind
from chatbridge.processors import AudioProcessor
from dataset_prep.audiocaps import audiocaps_items
from dataset_prep.coco_caption import coco_names
from dataset_prep.prep import multis_readers as read
from dataset_prep.prep.command import make_parser, prepare, run_command
from dataset_prep.prep.job import sha256, write_json
from dataset_prep.prep.media_placement import FOLDERS, index_by_stem

Names = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class Set:
    """One dataset of the mixture.

    Attributes:
        kind: its task kind; weight: its share in the mixture; batch_size: samples over all processes.
        files: annotation files to look for, the first alternative that is complete is read ("a+b": two that belong
            together).
        media: modality -> folders to look for.
        reader: reads the files; names: from a file name to those it may have on disk.
        optional: not in the published mixture: prepared only where --weight gives it one.
    """

    kind: str
    weight: int
    batch_size: int
    files: tuple[str, ...]
    media: dict[str, tuple[str, ...]]
    reader: Callable[..., Any] = read.entries
    names: Names = read.plain_names
    optional: bool = field(default=False)


def _audiocaps(files: list[Path], kind: TaskKind, names: Names, root: Path) -> Any:
    if files[0].suffix == ".csv":
        return audiocaps_items(files[0], index_by_stem(root, AudioProcessor.extensions))
    return read.entries(files, kind, names)


_COCO = {"image": ("coco/images", "coco", "images/coco", "images")}
_VG = {"image": ("VG/images", "visual_genome", "visual-genome", "vg", "VG")}
_MSRVTT = {"video": ("msrvtt/videos", "msrvtt/frames_fps4", "MSRVTT/videos", "msrvtt", "videos", "TrainValVideo")}
_AUDIOSET = {
    "video": ("audioset/videos", "audioset/frames_recons", "audioset/frames", "valor/videos", "audioset"),
    "audio": ("audioset/audio", "audioset/audio_22050hz_recons", "audioset/videos", "valor/audio", "audioset"),
}
_VQA = (
    "img_vqa_vqav2.json",
    "v2_OpenEnded_mscoco_train2014_questions.json+v2_mscoco_train2014_annotations.json",
    "vqa_train.json",
)


def _chat(kind: str, media: dict[str, tuple[str, ...]], names: Names, *files: str) -> Set:
    return Set(kind, 2, 16, files, media, read.entries, names)


SETS: dict[str, Set] = {
    "vqav2": Set("ti-shortqa", 1, 128, _VQA, _COCO, read.vqa, coco_names),
    "vg_qa": Set(
        "ti-shortqa",
        1,
        128,
        ("img_vqa_vg.json", "question_answers.json", "vg_qa.json"),
        _VG,
        read.visual_genome,
        read.vg_names,
    ),
    "coco_caption": Set(
        "ti-cap",
        1,
        128,
        ("img_cap_coco.json", "dataset_coco.json", "coco_karpathy_train.json", "captions_train2014.json"),
        _COCO,
        read.coco,
        coco_names,
    ),
    "msrvtt_qa": Set(
        "tv-shortqa",
        1,
        64,
        ("vid_qa_msrvtt.json", "train_qa.json", "msrvtt_qa_train.json"),
        _MSRVTT,
        read.entries,
        read.msrvtt_names,
    ),
    "msrvtt_caption": Set(
        "tv-cap",
        1,
        64,
        ("vid_cap_msrvtt.json", "train_val_videodatainfo.json", "MSRVTT_data.json", "cap_train.json"),
        _MSRVTT,
        read.msrvtt,
        read.msrvtt_names,
    ),
    "audiocaps": Set(
        "ta-cap",
        1,
        128,
        ("aud_cap_audiocaps.json", "audiocaps_train.csv", "audiocaps/train.csv"),
        {"audio": ("audiocaps/audio", "audiocaps/audio_22050hz", "audiocaps/train", "audiocaps")},
        _audiocaps,
    ),
    "llava_reasoning": _chat(
        "ti-rea", _COCO, coco_names, "llava_complex_reasoning_77k.json", "complex_reasoning_77k.json"
    ),
    "llava_detail": _chat("ti-det", _COCO, coco_names, "llava_detail_23k.json", "detail_23k.json"),
    "llava_conversation": _chat("ti-conv", _COCO, coco_names, "llava_conversation_58k.json", "conversation_58k.json"),
    "msrvtt_conversation": _chat("tv-conv", _MSRVTT, read.msrvtt_names, "video_conversation_10k.json"),
    "msrvtt_detail": _chat("tv-det", _MSRVTT, read.msrvtt_names, "video_detail_10k.json"),
    "msrvtt_reasoning": _chat("tv-rea", _MSRVTT, read.msrvtt_names, "video_complex_reasoning_10k.json"),
    "valor_conversation": _chat("tva-conv", _AUDIOSET, read.plain_names, "audiovideo_conversation_10k.json"),
    "valor_detail": _chat("tva-det", _AUDIOSET, read.plain_names, "audiovideo_detail_10k.json"),
    "textcaps": Set(
        "ti-cap", 0, 128, ("TextCaps_0.1_train.json",), {"image": ("textcaps/train_images", "train_images")},
        read.textcaps, read.plain_names, optional=True,
    ),
    "ocrvqa": Set(
        "ti-shortqa", 0, 128, ("ocrvqa/dataset.json", "ocrvqa_dataset.json"), {"image": ("ocrvqa/images",)},
        read.ocr_vqa, read.plain_names, optional=True,
    ),
}  # fmt: skip
"""The published mixture (the original's YAML), and two sets that the paper names without giving them a weight."""


def find_files(source: Path, alternatives: tuple[str, ...], known: dict[str, list[Path]]) -> list[Path]:
    """The first alternative whose files are all below `source`; [] when there is none."""
    for alternative in alternatives:
        found = [_find_file(source, name, known) for name in alternative.split("+")]
        if all(found):
            return found
    return []


def _find_file(source: Path, name: str, known: dict[str, list[Path]]) -> Path | None:
    base = name.rpartition("/")[2]
    matching = [path for path in known.get(base, []) if path.as_posix().endswith("/" + name)]
    return matching[0] if matching else None


def files_by_name(source: Path) -> dict[str, list[Path]]:
    """Every annotation file below a folder by its base name, the least deep first."""
    found: dict[str, list[Path]] = {}
    for folder, folders, names in os.walk(source, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.endswith((".json", ".jsonl", ".csv")):
                found.setdefault(name, []).append(Path(folder) / name)
    return {name: sorted(paths, key=lambda p: (len(p.parts), str(p))) for name, paths in found.items()}


def pairs(given: list[str], what: str, keys: list[str]) -> dict[str, str]:
    """A dict of "key=value" arguments.

    Raises:
        ValueError: a form or key that is not known.
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ValueError(f"{what} {text}: expected NAME=VALUE")
        if name not in keys:
            raise ValueError(f"{what} {text}: there is no '{name}'; {nearest(name, keys)}")
        found[name] = value
    return found


def _share(name: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < math.inf:
        raise ValueError(f"--weight {name}={text}: expected a number from 0 up")
    return share


def prepare_set(args: argparse.Namespace, name: str, files: list[Path], roots: dict[str, Path]) -> dict[str, Any]:
    """Prepare one dataset; returns its manifest."""
    plan = SETS[name]
    kind = TaskKind.parse(plan.kind)
    names = (files, kind, plan.names)
    items = partial(plan.reader, *names, roots["audio"]) if plan.reader is _audiocaps else partial(plan.reader, *names)
    return prepare(args, name, plan.kind, items, roots, files, out=args.out / name)


def mixture(done: dict[str, set[str]], weights: dict[str, float], absent: dict[str, str]) -> str:
    """The text of mixture.yaml.

    Args:
        done: dataset -> its modalities; weights: overrides; absent: dataset -> why it is not there.
    """
    lines = [
        "# The stage-2 mixture. Put `datasets` in the place of a run's own section, and this folder at `paths.data`.",
        "# Shares are those of the published run; a weight is a share, not a number of steps.",
    ]
    lines += [f"# Not there: {name} ({why})" for name, why in absent.items()]
    section = {}
    for name, modalities in done.items():
        plan = SETS[name]
        weight = weights.get(name, plan.weight)
        section[name] = {
            "annotations": f"${{paths.data}}/{name}/annotations.json",
            "kind": plan.kind,
            "media": {m: f"${{paths.data}}/{name}/{FOLDERS[m]}" for m in sorted(modalities)},
            "weight": int(weight) if weight == int(weight) else weight,
            "batch_size": plan.batch_size,
        }
    tree = {"paths": {"data": "."}, "datasets": section}
    return "\n".join(lines) + "\n" + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=200)


def body(args: argparse.Namespace) -> None:
    if not args.source.is_dir():
        raise ValueError(f"{args.source} is not a folder")
    names = list(SETS)
    media = pairs(args.media, "--media", [f"{n}.{m}" for n in names for m in SETS[n].media])
    weights = {n: _share(n, w) for n, w in pairs(args.weight, "--weight", names).items()}
    annotations = pairs(args.annotations, "--annotations", names)
    only = list(pairs([f"{n}=1" for n in args.only.split(",")], "--only", names)) if args.only else names
    known = files_by_name(args.source)
    done: dict[str, set[str]] = {}
    absent: dict[str, str] = {}
    counts = {}
    for name in only:
        plan = SETS[name]
        if plan.optional and name not in weights:
            continue
        given = [Path(part) for part in annotations[name].split("+")] if name in annotations else None
        files = given or find_files(args.source, plan.files, known)
        if not files:
            absent[name] = f"no {' or '.join(plan.files)}"
            continue
        roots, lacking = _roots(args.source, name, media)
        if lacking:
            absent[name] = f"no folder of its {lacking}; name it with --media {name}.{lacking}=DIR"
            continue
        manifest = prepare_set(args, name, files, roots)
        done[name] = set(plan.media)
        counts[name] = manifest["counts"]
    for name, why in absent.items():
        print(f"{name}: left out: {why}")
    if not done:
        raise ValueError(f"{args.source}: not one dataset of MULTIS is there")
    file = args.out / "mixture.yaml"
    file.write_text(mixture(done, weights, absent), encoding="utf-8")
    tree = {"datasets": counts, "absent": absent, "files": {file.name: sha256(file)}}
    write_json(args.out / "manifest.json", tree)
    print(f"mixture of {len(done)} datasets: {file}")


def _roots(source: Path, name: str, media: dict[str, str]) -> tuple[dict[str, Path], str]:
    roots = {}
    for modality, guesses in SETS[name].media.items():
        given = media.get(f"{name}.{modality}")
        places = [Path(given)] if given else [source / guess for guess in guesses]
        root = next((place for place in places if place.is_dir()), None)
        if root is None:
            return {}, modality
        roots[modality] = root
    return roots, ""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("multis", __doc__, source="folder of the downloads")
    parser.add_argument("--only", help="some datasets, joined by commas: " + ", ".join(SETS))
    parser.add_argument("--media", action="append", default=[], metavar="SET.MODALITY=DIR", help="a media folder")
    parser.add_argument("--annotations", action="append", default=[], metavar="SET=FILE", help="an annotation file")
    parser.add_argument("--weight", action="append", default=[], metavar="SET=NUMBER", help="another share")
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
