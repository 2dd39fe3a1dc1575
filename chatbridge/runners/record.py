"""What was run: written beside the checkpoints, and compared with them before a run goes on."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from chatbridge.common.config import Config
from chatbridge.common.digests import sha256
from chatbridge.common.schema import to_plain
from chatbridge.datasets.builder import TaskDataset

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


def write_record(
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
    text = json.dumps(record, indent=1, ensure_ascii=False)
    file.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be text


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


def changes(
    before: Mapping[str, Any], now: Config, hashes_before: Mapping[str, Any], hashes_now: Mapping[str, Any]
) -> dict[str, str]:
    """Keys of a configuration that must be the same (`schema.key`) and are not -> "old -> new".

    Args:
        before: as plain values.
        hashes_before, hashes_now: what `file_hashes` gave then and now.
    """
    old, new = _flat(before), _flat(to_plain(now))
    for one, other in ((old, new), (new, old)):  # a bare name stands for {name: it}
        for key in [key for key in one if f"{key}.name" in other]:
            one[f"{key}.name"] = one.pop(key)
    for key in [key for key, value in old.items() if key.endswith(".finish") and value]:  # its earlier name
        old[key.removesuffix("finish") + "preprocess_on"] = old.pop(key)
    found = {}
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not (_is_free(now, key) or _newer_default(key, old, new)):
            found[key] = f"{_show(old, key)} -> {_show(new, key)}"
    for name in hashes_before.keys() & hashes_now.keys():
        if sorted(hashes_before[name].values()) != sorted(hashes_now[name].values()):
            found[f"datasets.{name}.annotations"] = "the content of the files has changed"
    return found


def refuse(found: Mapping[str, str], accepted: Sequence[str], checkpoint: Path) -> list[str]:
    """The changes that the user accepts, one line each.

    Raises:
        ValueError: a change that is not accepted, with all of them.
    """
    lines = {key: f"{key}: {change}" for key, change in found.items()}
    refused = [line for key, line in lines.items() if not any(_under(key, name) for name in accepted)]
    if refused:
        raise ValueError(
            "\n".join([
                f"{checkpoint}: was made by another configuration; going on would be another run:",
                *(f"  {line}" for line in refused),
                "take the old values, another run.output_dir, or name the keys in run.accept_changes",
            ])
        )  # fmt: skip
    return list(lines.values())


def _flat(tree: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {at: tree}
    return {
        key: value
        for name, inner in tree.items()
        for key, value in _flat(inner, f"{at}.{name}" if at else name).items()
    }


def _under(key: str, name: str) -> bool:
    return key == name or key.startswith(name + ".")


def _is_free(config: Any, key: str) -> bool:
    """Whether a key is declared as one that may differ when a run goes on."""
    for name in key.split("."):
        if isinstance(config, dict):
            config = config.get(name)
            continue
        fields = {f.name: f for f in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else {}
        if name not in fields or fields[name].metadata.get("resume") == "free":
            return name in fields
        config = getattr(config, name)
    return False


def _newer_default(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """A key that only one side knows, in a part that both have: a version of the package brought or removed it."""
    if key in old and key in new:
        return False
    parent = key.rpartition(".")[0]
    return all(any(_under(other, parent) for other in side) for side in (old, new)) and parent not in (
        "datasets",
        "model.bridges",
    )


def _show(tree: Mapping[str, Any], key: str) -> str:
    return repr(tree[key]) if key in tree else "(absent)"
