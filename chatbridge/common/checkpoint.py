"""Checkpoint folders: trainable weights in safetensors, and the trainer's state beside them.

    output_dir/checkpoints/step_00000200/
        model.safetensors   trainable tensors only, named as in the model
        trainer.pt          optimiser, scaler, counters (tensors and plain values: read with weights_only)
        config.yaml         what the run used
    output_dir/checkpoints/latest   the newest complete folder's name
    output_dir/checkpoints/best     the name of the one with the lowest validation loss, where there is validation

A folder is written under another name and renamed when it is whole, so that a kill leaves the one before intact.
"""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS, TRAINER, CONFIG = "model.safetensors", "trainer.pt", "config.yaml"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or does not fit."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the `keep` newest, those at multiples of `every` steps (0: none), and the best."""

    keep: int = 2
    every: int = 0


def save_checkpoint(
    output_dir: str | Path,
    step: int,
    weights: dict[str, Tensor],
    trainer: dict[str, Any],
    config: str,
    retention: Retention | None = None,
    best: bool = False,
) -> Path:
    """Write the checkpoint of a step, make it the latest, and remove what `retention` does not keep.

    Args:
        best: name it as the best so far, too.

    Raises:
        CheckpointError: when it cannot be written (a full disk); the one before is intact then.
    """
    root = Path(output_dir) / "checkpoints"
    final, partial = root / f"step_{step:08d}", root / f".partial_step_{step:08d}"
    try:
        _write_folder(partial, step, weights, trainer, config)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(root)
        for name in ("latest", "best")[: 2 if best else 1]:
            _point(root, name, final.name)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        before = find_latest(output_dir)
        left = f"{before.name} is intact" if before else "there is none before it"
        raise CheckpointError(f"{final}: cannot be written ({error}); {left}; make room and resume") from error
    _remove_old(root, retention or Retention())
    return final


def _write_folder(folder: Path, step: int, weights: dict[str, Tensor], trainer: dict[str, Any], config: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "chatbridge", "step": str(step)})
    torch.save(trainer, folder / TRAINER)
    (folder / CONFIG).write_text(config, encoding="utf-8")
    for file in (*folder.iterdir(), folder):
        _flush(file)


def _point(root: Path, name: str, target: str) -> None:
    """Let the file `name` hold `target`, with no moment at which it holds anything but the old or the new."""
    partial = root / f".{name}.partial"
    partial.write_text(target, encoding="utf-8")
    _flush(partial)
    partial.replace(root / name)
    _flush(root)


def _remove_old(root: Path, retention: Retention) -> None:
    folders = sorted(root.glob("step_*"))
    pointers = [root / name for name in ("latest", "best") if (root / name).is_file()]
    named = {pointer.read_text(encoding="utf-8").strip() for pointer in pointers}
    for old in folders[: -retention.keep]:
        milestone = retention.every and int(old.name.removeprefix("step_")) % retention.every == 0
        if old.name not in named and not milestone:
            shutil.rmtree(old, ignore_errors=True)


def remove_partial(output_dir: str | Path) -> list[str]:
    """Remove what a kill left half written; the names of it."""
    found = sorted((Path(output_dir) / "checkpoints").glob(".partial_step_*"))
    for folder in found:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in found]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_latest(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint folder below an output folder, or None."""
    root = Path(output_dir) / "checkpoints"
    pointer = root / "latest"
    if not pointer.is_file():
        return None
    folder = root / pointer.read_text(encoding="utf-8").strip()
    return folder if (folder / WEIGHTS).is_file() else None


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that a user means: the folder itself, an output folder, or a file in either.

    Raises:
        CheckpointError: when there is none, with the places looked at.
    """
    path = Path(path)
    if path.name == WEIGHTS:
        path = path.parent
    if (path / WEIGHTS).is_file():
        return path
    latest = find_latest(path)
    if latest is None:
        raise CheckpointError(
            f"{path}: no checkpoint here; looked for {path / WEIGHTS} and {path / 'checkpoints' / 'latest'}"
        )
    return latest


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder or safetensors file. Raises CheckpointError when damaged."""
    file = Path(path) if Path(path).suffix == ".safetensors" else resolve_checkpoint(path) / WEIGHTS
    try:
        with safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error}); restore or remove it") from None


def load_trainer(folder: str | Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint folder."""
    file = Path(folder) / TRAINER
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing; weights alone cannot resume a run (use model.weights)") from None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from None
