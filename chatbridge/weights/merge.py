"""Vicuna from LLaMA and a delta, shard by shard, after everything that can be checked has been."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from chatbridge.weights.files import INDEXES, WeightsError, WeightSource, open_weights, shorten
from chatbridge.weights.filling import check_finite
from chatbridge.weights.formats import detect, wrong_slot
from chatbridge.weights.language_model import check_vocabulary, read_config, tokenizer_size
from chatbridge.weights.name_mapping import LLAMA_IGNORED, allowed

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors with a row for each token, of which a delta may have more (v0 adds one for padding)."""

ARCHITECTURE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def merge_delta(
    base: str | Path, delta: str | Path, out: str | Path, shard_bytes: int = 2 * 10**9, dtype: torch.dtype | None = None
) -> Path:
    """Add a delta to its base and write the sum as safetensors, with the delta's configuration and tokenizer.

    Rows of tokens that only the delta knows are the delta's own: FastChat made it against a table padded with zeros.

    Args:
        shard_bytes: size of a shard of the result; memory holds one at a time.
        dtype: of the result; by default the delta's. The sum is computed in it, as FastChat does.

    Raises:
        WeightsError: before anything is written, for folders whose configuration, vocabulary, names or shapes do not
            go together; later for a tensor that is not finite. `out` then does not exist.
    """
    base, delta, out = Path(base), Path(delta), Path(out)
    if out.exists():
        raise WeightsError(f"'{out}' exists; name a new folder")
    bases, deltas = open_weights(base), open_weights(delta)
    check_delta(base, bases, delta, deltas)
    partial = out.with_name(f".partial_{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_shards(bases, deltas, partial, shard_bytes, dtype)
        for file in delta.iterdir():
            if file.suffix in (".json", ".model") and file.name not in INDEXES:
                shutil.copyfile(file, partial / file.name)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def check_delta(base: Path, bases: WeightSource, delta: Path, deltas: WeightSource) -> None:
    """Refuse folders that do not go together: configuration, vocabulary, tokenizer, names, shapes."""
    for what, source in ((f"base '{base}'", bases), (f"delta '{delta}'", deltas)):
        if detect(source.tensors) != "llama":
            raise WeightsError(wrong_slot(what, detect(source.tensors), "language model"))
        if source.tensors.get(VOCABULARY[0], torch.empty(0)).dim() != 2:
            raise WeightsError(f"{what} has no table of embeddings ({VOCABULARY[0]})")
    ours, theirs = read_config(base), read_config(delta)
    other = [f"{k} {ours.get(k)} and {theirs.get(k)}" for k in ARCHITECTURE if ours.get(k) != theirs.get(k)]
    if other:
        raise WeightsError(f"base '{base}' and delta '{delta}' are of different sizes: {', '.join(other)}")
    rows = deltas.tensors[VOCABULARY[0]].shape[0]
    if theirs.get("vocab_size") != rows:
        raise WeightsError(f"delta '{delta}': config.json says {theirs.get('vocab_size')} tokens, its table has {rows}")
    if bases.tensors[VOCABULARY[0]].shape[0] > rows:
        raise WeightsError(
            f"base '{base}' has {bases.tensors[VOCABULARY[0]].shape[0]} tokens and delta '{delta}' only {rows}; "
            "the base is not plain LLaMA (has a delta been added already?)"
        )
    tokens = tokenizer_size(delta)
    if tokens is not None:
        check_vocabulary(tokens, rows, delta, delta)
    _check_names(base, bases, delta, deltas)


def _check_names(base: Path, bases: WeightSource, delta: Path, deltas: WeightSource) -> None:
    needed = {name for name in deltas.tensors if not allowed(name, LLAMA_IGNORED)}
    known = {name for name in bases.tensors if not allowed(name, LLAMA_IGNORED)}
    wrong = [f"{name} is in the delta only" for name in sorted(needed - known)]
    wrong += [f"{name} is in the base only" for name in sorted(known - needed)]
    for name in sorted(needed & known):
        ours, theirs = bases.tensors[name].shape, deltas.tensors[name].shape
        grown = name in VOCABULARY and ours[1:] == theirs[1:] and ours[0] <= theirs[0]
        if ours != theirs and not grown:
            wrong.append(f"{name} is {list(ours)} in the base and {list(theirs)} in the delta")
    if wrong:
        raise WeightsError(f"base '{base}' and delta '{delta}' do not go together ({len(wrong)}): {shorten(wrong, 6)}")


def _write_shards(
    bases: WeightSource, deltas: WeightSource, out: Path, shard_bytes: int, dtype: torch.dtype | None
) -> None:
    names = [name for name in deltas.tensors if not allowed(name, LLAMA_IGNORED)]
    size = {n: deltas.tensors[n].numel() * (dtype or deltas.tensors[n].dtype).itemsize for n in names}
    shards: list[list[str]] = [[]]
    for name in names:
        if shards[-1] and sum(size[n] for n in shards[-1]) + size[name] > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    weight_map = {}
    for number, group in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        merged: dict[str, Tensor] = {}
        for name, tensor in deltas.stream(group):
            check_finite(name, tensor, f"delta '{deltas.path}'")
            merged[name] = tensor.to(dtype or tensor.dtype, copy=True)
            del tensor
        for name, tensor in bases.stream(group):
            check_finite(name, tensor, f"base '{bases.path}'")
            merged[name][: len(tensor)] += tensor.to(merged[name].dtype)
            del tensor
        for name, tensor in merged.items():
            check_finite(name, tensor, "the sum of base and delta")
        save_file(merged, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": sum(size.values())}, "weight_map": weight_map}
    (out / INDEXES[0]).write_text(json.dumps(index, indent=1), encoding="utf-8")
