"""COCO captions: image-text pairs for stage 1 and for MULTIS.

SOURCE is an annotation file in one of three formats:
  - Karpathy's dataset_coco.json, with the splits train, restval, val and test;
  - a list of pairs as LAVIS has it (coco_karpathy_train.json);
  - COCO's own captions_train2014.json.
Images are looked for below --media as train2014/..., val2014/..., train2017/... and plain file names, so that either
release of the images serves.

  python -m dataset_prep.coco_caption dataset_coco.json --media coco --out data/coco_caption
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dataset_prep.prep.command import make_parser, media_root, prepare, run_command
from dataset_prep.prep.grouping import Captioned, group
from dataset_prep.prep.items import Drop, Item
from dataset_prep.prep.tables import guarded, load_json, text

KIND = "ti-cap"
SPLITS = ("train", "restval")
"""Karpathy's training set is both."""


def coco_names(image: str | int) -> tuple[str, ...]:
    """File names that an image of COCO may have, from its number or any of its names.

    The 2017 release dropped the prefixes of 2014 and mixed the folders, the pictures are the same.
    """
    text = str(image)
    base = text.rpartition("/")[2]
    digits = base.rpartition(".")[0] or base
    digits = digits.rpartition("_")[2]
    if not digits.isdecimal():
        return (text,)
    number = int(digits)
    plain = f"{number:012d}.jpg"
    old = [f"COCO_{split}_{plain}" for split in ("train2014", "val2014")]
    names = [] if text.isdecimal() else [text, base]
    names += [f"train2017/{plain}", f"val2017/{plain}", f"train2014/{old[0]}", f"val2014/{old[1]}", plain, *old]
    return tuple(dict.fromkeys(names))


def coco_items(source: Path, splits: tuple[str, ...]) -> Iterator[Item | Drop]:
    """One sample per image, with all its captions.

    Raises:
        ValueError: a file in none of the three formats.
    """
    tree = load_json(source)
    if isinstance(tree, list):
        found = _pairs(tree)
    elif isinstance(tree, dict) and "annotations" in tree:
        found = _official(tree)
    elif isinstance(tree, dict) and "images" in tree:
        found = _karpathy(tree["images"], splits)
    else:
        raise ValueError(f"{source}: not a COCO caption file (a list, or an object with 'images' or 'annotations')")
    return group(found, "image", source.name)


def _karpathy(images: list[Any], splits: tuple[str, ...]) -> Iterator[Captioned]:
    for index, image in enumerate(images):
        if not isinstance(image, dict) or not image.get("filename"):
            yield Captioned(index, "", (), None, "names no file")
        elif not splits or image.get("split") in splits:
            name = f"{image['filepath']}/{image['filename']}" if image.get("filepath") else image["filename"]
            sentences = image.get("sentences") or []
            texts = [s.get("raw") if isinstance(s, dict) else s for s in sentences]
            yield Captioned(index, text(image, "cocoid") or name, coco_names(name), texts)


def _pairs(entries: list[Any]) -> Iterator[Captioned]:
    for index, entry in enumerate(entries):
        name = text(entry, "image", "image_id")
        if not name:
            yield Captioned(index, "", (), None, "names no image")
        else:
            yield Captioned(index, name, coco_names(name), entry.get("caption"))


def _official(tree: dict[str, Any]) -> Iterator[Captioned]:
    names = {text(image, "id"): image["file_name"] for image in tree.get("images", ()) if "file_name" in image}
    for index, entry in enumerate(tree["annotations"]):
        image = text(entry, "image_id")
        if not image:
            yield Captioned(index, "", (), None, "names no image")
        else:
            yield Captioned(index, image, coco_names(names.get(image, image)), entry.get("caption"))


def body(args: argparse.Namespace) -> None:
    folder = args.source.parent
    root = media_root(args.media, folder / "images", folder / "coco", folder)
    splits = tuple(s.strip() for s in args.splits.split(",") if s.strip())
    items = list(guarded(coco_items(args.source, splits), args.source))
    settings = {"splits": list(splits)}
    total = partial(len, items)
    prepare(args, "coco_caption", KIND, lambda: items, {"image": root}, [args.source], total, settings=settings)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("coco_caption", __doc__, source="annotation file")
    parser.add_argument("--media", type=Path, help="folder of the images; by default beside SOURCE")
    parser.add_argument("--splits", default=",".join(SPLITS), help="of dataset_coco.json (train,restval); '' is all")
    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
