"""``run.json``: what was run, with which software and on which data."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from chatbridge.common.checksums import sha256
from chatbridge.common.documents import write_whole
from chatbridge.datasets.base import TaskDataset

PACKAGES = (
    "chatbridge", "torch", "torchvision", "torchaudio", "transformers", "accelerate", "timm", "webdataset",
    "sentencepiece", "decord", "av", "numpy", "safetensors",
)  # fmt: skip


def file_hashes(datasets: Mapping[str, TaskDataset]) -> dict[str, dict[str, str]]:
    """Dataset -> annotation (or index) file, by name -> SHA-256 of its content."""
    found: dict[str, dict[str, str]] = {}
    for name, dataset in datasets.items():
        found[name] = {file.name: sha256(file) for file in _annotation_files(dataset.config)}
    return found


def _annotation_files(config: Any) -> list[Path]:
    named = getattr(config, "annotations", None) or getattr(config, "index", None) or []
    files = [Path(file) for file in ([named] if isinstance(named, str) else named)]
    folder = getattr(config, "folder", None)
    if not files and folder:
        files = [Path(folder) / "index.json"]
    return [file for file in files if file.is_file()]


def write_run_json(
    file: Path,
    config: str,
    hashes: Mapping[str, Any],
    sizes: Mapping[str, int | None],
    world: int,
    device: str,
    steps: int,
) -> None:
    """Configuration, versions, state of the sources, data and command line, as JSON. Nothing of the environment."""
    record = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "world": world,
        "device": device,
        "total_steps": steps,
        "versions": {"python": platform.python_version(), **_versions()},
        "git": git_state(Path(__file__).parent),
        "annotations": hashes,
        "sizes": sizes,
        "config": yaml.safe_load(config),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(record, indent=1, ensure_ascii=False))


def _versions() -> dict[str, str]:
    found = {"torch_build": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether files differ from it; None outside a checkout or without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
