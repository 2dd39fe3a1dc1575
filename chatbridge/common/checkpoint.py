"""Checkpoint folders: trainable weights in safetensors, and the trainer's state beside them.

    output_dir/checkpoints/step_00000200/
        model.safetensors   trainable tensors only, named as in the model
        trainer.pt          optimiser, scaler, counters (tensors and plain values: read with weights_only)
        config.yaml         what the run used
    output_dir/checkpoints/latest   the newest complete folder's name

A folder is written under another name and renamed when it is whole, so that a kill leaves the one before intact.
"""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS, TRAINER, CONFIG = "model.safetensors", "trainer.pt", "config.yaml"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or does not fit."""


def save_checkpoint(
    output_dir: str | Path, step: int, weights: dict[str, Tensor], trainer: dict[str, Any], config: str, keep: int = 2
) -> Path:
    """Write the checkpoint of a step, make it the latest, and remove all but the `keep` newest."""
    root = Path(output_dir) / "checkpoints"
    final, partial = root / f"step_{step:08d}", root / f".partial_step_{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, partial / WEIGHTS, metadata={"format": "chatbridge", "step": str(step)})
    torch.save(trainer, partial / TRAINER)
    (partial / CONFIG).write_text(config, encoding="utf-8")
    for file in partial.iterdir():
        _flush(file)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _flush(root)
    pointer = root / ".latest.partial"
    pointer.write_text(final.name, encoding="utf-8")
    _flush(pointer)
    pointer.replace(root / "latest")
    for old in sorted(root.glob("step_*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


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
