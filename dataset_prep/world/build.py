"""Make the world in a folder: media with annotations, language model, encoders; what is there already is kept.

Each part is written beside its place and moved there when it is whole, with a stamp of all that decided it: an
interrupted run leaves whole parts or none, and a second run of the same settings does nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataset_prep.world.settings import WorldSettings

STAMP = "stamp.json"


def make_media(folder: Path, settings: WorldSettings, seed: int) -> dict:
    """Media files, and annotations/*.json that name them relative to `folder`."""
    from dataset_prep.world.annotations import plan
    from dataset_prep.world.media_files import write_media

    world = plan(settings.media, seed)
    write_media(folder, world, seed)
    (folder / "annotations").mkdir()
    for name, entries in world.annotations.items():
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(entries, indent=1) + "\n")
    return {"files": len(world.singles) + len(world.joints)}


def make_llm(folder: Path, settings: WorldSettings, seed: int) -> dict:
    """A folder that transformers loads, with tokenizer.model."""
    from dataset_prep.world.pretrain_llm import pretrain_llm

    return pretrain_llm(folder, settings.llm, seed)


def make_encoders(folder: Path, settings: WorldSettings, seed: int) -> dict:
    """eva_vit.safetensors and beats.safetensors."""
    from dataset_prep.world.pretrain_encoders import pretrain_encoders

    return pretrain_encoders(folder, settings.encoder, seed)


PARTS: dict[str, tuple[Callable[[Path, WorldSettings, int], dict], str]] = {
    "media": (make_media, "media"),
    "llm": (make_llm, "llm"),
    "encoders": (make_encoders, "encoder"),
}
"""Name of a part's folder -> what makes it, and the group of settings that decides it."""


def source_digest() -> str:
    """A digest of this package's own code: a world made by other code is another world."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def wanted_stamp(part: str, settings: WorldSettings, seed: int) -> dict[str, Any]:
    """Everything that decides what a part is."""
    group = dataclasses.asdict(getattr(settings, PARTS[part][1]))
    return {"part": part, "seed": seed, "settings": group, "code": source_digest()}


def present(out: Path, part: str, settings: WorldSettings, seed: int) -> dict | None:
    """The record of a part that is there and as wanted, else None."""
    try:
        record = json.loads((out / part / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("stamp") == wanted_stamp(part, settings, seed) else None


def make_part(out: Path, part: str, settings: WorldSettings, seed: int) -> None:
    """Make one part and move it into place."""
    import torch  # here, in a process of its own: the parent only waits, and torch would take 550 MB of it

    torch.set_num_threads(1)  # two processes of several threads each are slower than two of one on two cores
    began = time.perf_counter()
    draft = out / f".{part}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        figures = PARTS[part][0](draft, settings, seed)
        seconds = round(time.perf_counter() - began, 1)
        record = {"stamp": wanted_stamp(part, settings, seed), "seconds": seconds, "figures": figures}
        (draft / STAMP).write_text(json.dumps(record, indent=2) + "\n")
        shutil.rmtree(out / part, ignore_errors=True)
        os.replace(draft, out / part)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _worker(out: Path, parts: list[str], settings: WorldSettings, seed: int) -> None:
    try:
        for part in parts:
            make_part(out, part, settings, seed)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def build(out: Path, settings: WorldSettings, seed: int) -> dict:
    """Make what is missing of the world in `out`, in two processes side by side.

    Returns:
        Per part the seconds it took when it was made and its figures; also written to world.json.

    Raises:
        ValueError: when `out` cannot be a folder, or a part could not be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: cannot make this folder ({error.strerror}); choose another with --out") from error
    missing = [part for part in PARTS if present(out, part, settings, seed) is None]
    chains = [[part for part in chain if part in missing] for chain in (["llm"], ["media", "encoders"])]
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    workers = [context.Process(target=_worker, args=(out, chain, settings, seed)) for chain in chains if chain]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise ValueError(f"{out}: the world could not be made; see the message above")
    parts = {part: present(out, part, settings, seed) for part in PARTS}
    if not all(parts.values()):
        raise ValueError(f"{out}: the code that makes the world changed while it was being made; run it again")
    summary = {name: {"seconds": r["seconds"], "figures": r["figures"]} for name, r in parts.items()}
    if missing:
        summary["wall_seconds"] = round(time.perf_counter() - began, 1)
        (out / "world.json").write_text(json.dumps({"seed": seed, **summary}, indent=2) + "\n")
    return summary
