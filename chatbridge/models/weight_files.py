"""Reading weight files, and saying exactly how one differs from a module."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The precisions that a configuration can name."""


def read_weights(path: str | Path) -> dict[str, Any]:
    """The content of a weight file on the CPU: tensors by name, or whatever dictionary a ``.pth`` file holds.

    Safetensors files are read as such; anything else with `torch.load`, restricted to tensors and plain data.

    Raises:
        ValueError: when the file is missing or cannot be read as weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights '{path}' do not exist; download them or correct the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot read weights '{path}': {reason}; is the download complete?") from error
    except Exception as error:  # safetensors raises a class of its own, outside the usual hierarchy
        raise ValueError(f"cannot read weights '{path}': {error}; is the download complete?") from error
    if not isinstance(state, dict):
        raise ValueError(f"weights '{path}' hold a {type(state).__name__}, not a dictionary of tensors")
    return state


def _is_zip(path: Path) -> bool:
    """Memory mapping needs the zip format that PyTorch writes since 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def difference(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps `given` from filling `expected`: one line each for missing, unexpected and misshapen names."""
    problems = []
    missing = [k for k in expected if k not in given]
    unexpected = [k for k in given if k not in expected]
    shapes = [
        f"{k} {list(given[k].shape)} where {list(v.shape)} is needed"
        for k, v in expected.items()
        if k in given and given[k].shape != v.shape
    ]
    for label, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)):
        if names:
            problems.append(f"{label} ({len(names)}): {shorten(names)}")
    return problems


def shorten(names: Iterable[str], most: int = 12) -> str:
    """The names, or the first `most` of them and how many more there are."""
    names = list(names)
    more = f", ... and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load `state` into `module`, where every name and shape must fit (load hooks of the module come first).

    Raises:
        ValueError: naming `what`, and every missing, unexpected and misshapen tensor.
    """
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        problems = difference(module.state_dict(), state)
        detail = "; ".join(problems) if problems else str(error)
        raise ValueError(f"{what} does not fit this architecture: {detail}") from error
