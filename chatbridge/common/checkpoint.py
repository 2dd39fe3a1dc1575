"""Checkpoint folders: trainable weights in safetensors, and the trainer's state beside them.

    output_dir/checkpoints/step_00000200/
        model.safetensors   trainable tensors only, named as in the model
        trainer.pt          optimizer, scaler, counters (tensors and plain values: read with weights_only)
        config.yaml         what the run used
        SHA256SUMS          of these files; compared whenever they are read
    output_dir/checkpoints/latest   the newest complete folder's name, and a checksum of it on the next line
    output_dir/checkpoints/best     the same of the one with the lowest validation loss, where there is validation

A folder is written under another name and renamed when it is whole, so that a kill leaves the one before intact.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chatbridge.common.checksums import SUMS, altered, write_sums
from chatbridge.common.documents import MISSING, DocumentError, check_file, read_text, write_whole
from chatbridge.common.safe_loading import check_zip

logger = logging.getLogger("chatbridge")

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
            write_whole(root / name, f"{final.name}\n{_checksum(final.name)}\n", durable=True)
        _flush(root)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        before = [folder.name for folder in newest_first(output_dir)]
        left = f"{before[0]} is intact" if before else "there is none before it"
        raise CheckpointError(f"{final}: cannot be written ({error}); {left}; make room and resume") from error
    _remove_old(root, retention or Retention())
    return final


def _write_folder(folder: Path, step: int, weights: dict[str, Tensor], trainer: dict[str, Any], config: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "chatbridge", "step": str(step), "sums": SUMS})
    torch.save(trainer, folder / TRAINER)
    (folder / CONFIG).write_text(config, encoding="utf-8")
    write_sums(folder)
    for file in (*folder.iterdir(), folder):
        _flush(file)


def _remove_old(root: Path, retention: Retention) -> None:
    try:
        named = {_named(root, "latest"), _named(root, "best")}
    except DocumentError:
        return  # without knowing what they name, nothing is removed
    for old in _folders(root)[: -retention.keep]:
        milestone = retention.every and _step(old) % retention.every == 0
        if old.name not in named and not milestone:
            shutil.rmtree(old, ignore_errors=True)


def _folders(root: Path) -> list[Path]:
    """The checkpoints below a folder, oldest first; whatever else lies there is left alone."""
    found = root.iterdir() if root.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"step_\d+", path.name) and path.is_dir()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _named(root: Path, pointer: str) -> str:
    """What the file `pointer` names; empty where there is no such file. Raises DocumentError.

    Earlier versions wrote the name alone: such a file is believed.
    """
    try:
        name, _, checksum = read_text(root / pointer, most=1000).strip().partition("\n")
    except DocumentError as error:
        if error.reason == MISSING:
            return ""
        raise
    if checksum and checksum != _checksum(name):
        raise DocumentError(root / pointer, f"names {name[:80]!r}, which is not what was written")
    return name


def _checksum(name: str) -> str:
    return f"{zlib.crc32(name.encode()):08x}"


def remove_partial(output_dir: str | Path) -> list[str]:
    """Remove what a kill left half written; the names of it."""
    root = Path(output_dir) / "checkpoints"
    found = sorted([*root.glob(".partial_step_*"), *root.glob(".*.partial")])
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [path.name for path in found]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_latest(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint folder below an output folder, or None.

    Raises:
        CheckpointError: when ``latest`` cannot be read, or names none.
    """
    root = Path(output_dir) / "checkpoints"
    try:
        name = _named(root, "latest")
        folders = [folder for folder in _folders(root) if os.path.isfile(folder / WEIGHTS)]
    except (OSError, DocumentError) as error:
        raise CheckpointError(str(error)) from None
    if not name:  # killed between the two, a run left a folder that is whole, and no pointer yet
        return folders[-1] if folders else None
    newest = next((folder for folder in folders if folder.name == name), None)
    if newest is None:
        known = ", ".join(folder.name for folder in folders) or "none"
        raise CheckpointError(
            f"{root / 'latest'}: names {name[:80]!r}, which is no checkpoint to be read; there: {known}"
        )
    return newest


def newest_first(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders below an output folder."""
    try:
        folders = _folders(Path(output_dir) / "checkpoints")
    except OSError:
        return []
    return folders[::-1]


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that a user means: the folder itself, an output folder, or a file in either.

    Raises:
        CheckpointError: when there is none, with the places looked at.
    """
    path = Path(path)
    if path.name == WEIGHTS:
        path = path.parent
    if os.path.isfile(path / WEIGHTS):
        return path
    latest = find_latest(path)
    if latest is None:
        raise CheckpointError(
            f"{path}: no checkpoint here; looked for {path / WEIGHTS} and {path / 'checkpoints' / 'latest'}"
        )
    return latest


def check_sums(folder: Path) -> None:
    """Compare the files of a checkpoint folder with what was written.

    Checkpoints of versions that wrote no checksums pass, and the log says so.

    Raises:
        CheckpointError: naming the file that was altered or is missing.
    """
    problem = sums_problem(folder)
    if problem is None:
        logger.info("%s: is of a version that wrote no checksums; whether it was altered is not known", folder)
    elif problem:
        raise CheckpointError(problem)


def sums_problem(folder: Path, *names: str) -> str | None:
    """What is wrong with files of a checkpoint folder (all, unless named); None where it never had checksums."""
    problem = altered(folder, names or None)
    if problem is None and _has_sums(folder / WEIGHTS):
        return f"{folder / SUMS}: {MISSING}, though it was written"
    return problem


def _has_sums(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as handle:
            return (handle.metadata() or {}).get("sums") is not None
    except Exception:  # whoever reads it will say what is wrong with it
        return False


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder or safetensors file. Raises CheckpointError when damaged."""
    file = Path(path) if Path(path).suffix == ".safetensors" else resolve_checkpoint(path) / WEIGHTS
    try:
        check_file(file)
        with safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except DocumentError as error:
        raise CheckpointError(str(error)) from None
    except Exception as error:
        raise CheckpointError(
            f"{file}: not a readable safetensors file ({_reason(error)}); restore or remove it"
        ) from None


def load_trainer(folder: str | Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint folder. Raises CheckpointError when it is damaged, or no such state."""
    file = Path(folder) / TRAINER
    try:
        check_file(file)
        check_zip(file, whole=False, bounded=False)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except DocumentError as error:
        advice = "; weights alone cannot resume a run (use model.weights)" if error.reason == MISSING else ""
        raise CheckpointError(f"{error}{advice}") from None
    except Exception as error:
        raise CheckpointError(f"{file}: damaged ({_reason(error)})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: damaged (it holds no trainer's state)")
    return state


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
