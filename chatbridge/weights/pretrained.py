"""A whole ChatBridge in one folder, or on the Hugging Face hub: everything that a notebook needs to talk to it.

config.json                     model and processor settings, and the size and SHA-256 of every weight file
model*.safetensors (+ index)    every tensor, frozen ones included, shared ones once
llm/                            the language model's configuration and its tokenizer
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import nn

from chatbridge import register_all
from chatbridge.common.checksums import sha256
from chatbridge.common.documents import DocumentError, open_regular
from chatbridge.common.registry import MODELS, PROCESSORS
from chatbridge.common.schema import Binder, ConfigError, key, to_plain
from chatbridge.weights.coverage import Coverage
from chatbridge.weights.files import WeightsError, open_weights
from chatbridge.weights.filling import empty_weights, fill, filling_on
from chatbridge.weights.language_model import read_object
from chatbridge.weights.loading import LoadPlan, plan_own

CONFIG, FORMAT = "config.json", "chatbridge-pretrained-1"
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


@dataclass(kw_only=True)
class ModelSection:
    """What config.json says of the model."""

    model: Any = key(registry=MODELS, help="the model")


@dataclass(kw_only=True)
class ProcessorSection:
    """What config.json says of the processors."""

    processors: dict[str, Any] = key({}, registry=PROCESSORS, help="modality -> how its files become tensors")


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    processors: Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write the whole model to a new folder.

    Args:
        model: a registered model with its ``config``, whose language model is a transformers one.
        processors: modality -> typed configuration of its processor (a run's ``processors:`` section).
        tokenizer: folder of the tokenizer; by default the one that the language model was read from.
        max_shard_size: of one safetensors file.

    Raises:
        ValueError: when the folder exists and holds something, or there is no tokenizer to put into it.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise WeightsError(f"folder '{folder}' is not empty; name a new one")
    partial = folder.with_name(f".partial_{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "llm").mkdir(parents=True)
    _copy_tokenizer(Path(tokenizer or getattr(model.config.llm, "path", "") or ""), partial / "llm")
    language = model.llm.model
    # As it stands: its own `save_pretrained` refuses some that it reads (with sampling settings, as Llama 2 had).
    language.config.to_json_file(partial / "llm" / CONFIG, use_diff=True)
    eos = model.llm.eos_ids
    if eos:
        settings = {"bos_token_id": language.config.bos_token_id, "eos_token_id": eos if len(eos) > 1 else eos[0]}
        (partial / "llm" / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    state = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
    huggingface_hub.save_torch_state_dict(_each_once(state), partial, max_shard_size=max_shard_size)
    settings = to_plain(ModelSection(model=_portable(model))) | to_plain(
        ProcessorSection(processors=dict(processors or {}))
    )
    files = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in sorted(partial.glob("*.safetensors"))}
    text = json.dumps({"format": FORMAT, **settings, "files": files}, indent=1)
    (partial / CONFIG).write_text(text, encoding="utf-8")
    if folder.is_dir():
        folder.rmdir()
    partial.rename(folder)
    return folder


def from_pretrained(
    name_or_path: str | Path,
    device: torch.device | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    verify: bool = True,
) -> nn.Module:
    """The model of a folder, or of a repository on the hub (from the cache where the network cannot be reached).

    Weights are mapped from disk and put straight onto `device` (None: the CPU).

    Args:
        verify: compare every file's SHA-256 with config.json.

    Raises:
        ValueError: when there is none, or it is damaged or incomplete.
    """
    folder = find_pretrained(name_or_path, revision, local_files_only)
    if verify:
        check_files(folder)
    model = build_empty(folder)
    what = f"pretrained model '{folder}'"
    coverage, mapping, source, targets = plan_pretrained(model, folder)
    coverage.require(what)
    with filling_on(device):
        fill(model, mapping, source, targets, what)
    return model.eval() if device is None else model.to(device).eval()


def build_empty(folder: Path) -> nn.Module:
    """The model that a folder's config.json describes, its parameters on the meta device."""
    with empty_weights():
        model = MODELS.build(_read_section(folder, "model").model)
    model.llm.model.tie_weights()
    return model


def plan_pretrained(model: nn.Module, folder: Path) -> LoadPlan:
    """What filling `model` from a folder would do."""
    plan = plan_own(model, open_weights(folder), whole=True)
    plan[0].kind, plan[0].verdict = "whole ChatBridge of this project", "is incomplete"
    return plan


def inspect_pretrained(folder: Path) -> Coverage:
    """The coverage of a folder, checksums included."""
    coverage = plan_pretrained(build_empty(folder), folder)[0]
    try:
        check_files(folder)
    except WeightsError as error:
        coverage.problems.append(str(error))
    return coverage


def is_pretrained(path: str | Path) -> bool:
    """Whether a folder was written by `save_pretrained`."""
    file = Path(path) / CONFIG
    try:
        with open_regular(file) as handle:
            return f'"{FORMAT}"'.encode() in handle.read(200)
    except (OSError, DocumentError):
        return False


def load_processors(folder: str | Path) -> dict[str, Any]:
    """The processors of a folder, built: modality -> processor."""
    configs = _read_section(Path(folder), "processors").processors
    return {modality: PROCESSORS.build(config) for modality, config in configs.items()}


def _read_section(folder: Path, name: str) -> Any:
    """One section of a folder's config.json, typed.

    Raises:
        ValueError: when config.json is not one of ours, or names parts that are not registered.
    """
    file = folder / CONFIG
    if not is_pretrained(folder):
        raise WeightsError(f"'{folder}' is no pretrained ChatBridge: {file} was not written by save_pretrained")
    register_all()  # whatever config.json may name
    binder = Binder(str(file), folder)
    section = {"model": ModelSection, "processors": ProcessorSection}[name]
    settings = binder.dataclass(section, {name: read_object(file).get(name, {})}, "")
    problems = binder.problems + [missing.problem for missing in binder.missing]
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def find_pretrained(name_or_path: str | Path, revision: str | None, local_files_only: bool) -> Path:
    """The folder itself, or that of the hub's cache after what is missing was fetched."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    name = str(name_or_path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise WeightsError(f"no folder '{name}', and it is no name on the hub (owner/name) either")
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=local_files_only))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise WeightsError(
            f"'{name}' is not in the hub's cache and cannot be fetched ({type(error).__name__}); on a machine with "
            f"network: hf download {name}; then copy the folder here and name it instead"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise WeightsError(f"'{name}' cannot be fetched: {str(error).strip().splitlines()[0]}") from None


def check_files(folder: Path) -> None:
    """Compare size and SHA-256 of every weight file with config.json.

    Raises:
        WeightsError: naming the file that is missing, cut or altered.
    """
    files = read_object(folder / CONFIG).get("files", {})
    if not isinstance(files, dict) or not all(isinstance(recorded, dict) for recorded in files.values()):
        raise WeightsError(f"'{folder / CONFIG}' does not list its weight files; fetch it again")
    for name, recorded in files.items():
        file = folder / Path(name).name
        if not os.path.isfile(file):
            raise WeightsError(f"pretrained model '{folder}' lacks {name}; fetch it too")
        size = os.path.getsize(file)
        if size != recorded.get("bytes"):
            raise WeightsError(f"'{file}' has {size:,} bytes and not {recorded.get('bytes')}; fetch it again")
        if sha256(file) != recorded.get("sha256"):
            raise WeightsError(f"'{file}' was altered: its SHA-256 is not that of config.json; fetch it again")


def _portable(model: nn.Module) -> Any:
    """The model's configuration without this machine's paths."""
    llm = model.llm.portable_config("llm")
    bridges = {name: replace(bridge, encoder=_without_weights(bridge.encoder))
               for name, bridge in model.config.bridges.items()}  # fmt: skip
    return replace(model.config, llm=llm, bridges=bridges, weights=[])


def _without_weights(encoder: Any) -> Any:
    return replace(encoder, weights=None) if getattr(encoder, "weights", None) is not None else encoder


def _copy_tokenizer(source: Path, target: Path) -> None:
    folder = source if source.is_dir() else source.parent
    found = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not str(source) or not any(file.name in TOKENIZER_FILES[:2] for file in found):
        raise WeightsError(f"no tokenizer in '{folder}'; name its folder (tokenizer=...)")
    for file in found:
        shutil.copyfile(file, target / file.name)


def _each_once(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Shared tensors under their first name only: `plan_own` knows which names are one."""
    seen: set[tuple] = set()
    out = {}
    for name, tensor in state.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            out[name] = tensor.contiguous()
    return out
