"""Weight files on disk: shapes at once, contents when they are asked for, never code.

A `WeightSource` stands for one file or for the shards of a folder. Its tensors are known by name, shape and type (on
the meta device) as soon as it is opened; `WeightSource.stream` then maps the files into memory a window at a time, so
that a model can be filled while the host holds little more than one window of the file.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from chatbridge.common.checkpoint import WEIGHTS, CheckpointError, resolve_checkpoint, sums_problem
from chatbridge.common.documents import MISSING, DocumentError, check_file, read_json, repaired
from chatbridge.common.safe_loading import DamagedFile, check_header, check_zip, is_zip, load_pickled

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The precisions that a configuration can name."""

WINDOW = 16 * 2**20
"""Bytes of a file that are mapped at a time (a single tensor may be larger)."""

WRAPPERS = ("model", "state_dict", "module")
"""Keys under which a ``.pth`` file may keep its tensors."""

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class WeightsError(ValueError):
    """A weight file is missing, damaged, unsafe, or not what its place needs."""


@dataclass(frozen=True)
class WeightSource:
    """The tensors of a file or folder.

    Attributes:
        path: what the user named.
        tensors: name -> tensor on the meta device (shape and type only).
        extras: what else the file holds (``cfg``, ``epoch``, ...).
        container: "safetensors", "torch" (zip), "torch, legacy", "memory"; with ", N shards" for a folder.
    """

    path: Path
    tensors: dict[str, Tensor]
    extras: dict[str, Any] = field(default_factory=dict)
    container: str = "memory"
    _files: Mapping[str, Path] = field(default_factory=dict, repr=False)
    _state: Mapping[str, Tensor] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, state: Mapping[str, Any], where: str = "state dict") -> WeightSource:
        """Tensors that are in memory already."""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        return cls(Path(where), {n: _meta(n, t) for n, t in tensors.items()}, _state=tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, file by file. Let go of each before the next is asked for, or its window stays mapped."""
        names = list(names)
        if self._state is not None:
            yield from ((name, self._state[name]) for name in names)
            return
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._files[name], []).append(name)
        for file, group in by_file.items():
            yield from guarded(file, lambda file=file, group=group: self._windows(file, group))

    def _windows(self, file: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        if file.suffix == ".safetensors":
            for window in self._split(names):
                with safe_open(file, framework="pt") as handle:
                    for name in window:
                        yield name, handle.get_tensor(name)
            return
        for window in self._split(names) if is_zip(file) else [names]:
            state, _ = _unwrap(load_pickled(file))
            for name in window:
                yield name, state.pop(name)

    def _split(self, names: list[str]) -> Iterator[list[str]]:
        window: list[str] = []
        size = 0
        for name in names:
            if window and size + self.tensors[name].nbytes > WINDOW:
                yield window
                window, size = [], 0
            window.append(name)
            size += self.tensors[name].nbytes
        if window:
            yield window


def open_weights(path: str | Path, whole: bool = True) -> WeightSource:
    """Open a weight file, a folder of shards, or a checkpoint folder of this project, and check that it is whole.

    PyTorch's zip files and checkpoints of this project are read through once to compare their checksums; other
    safetensors carry none.

    Args:
        whole: compare checksums; False looks at names and shapes alone, and is quick.

    Raises:
        WeightsError: naming the file, when it is missing, cannot be read, is cut or altered, or would run code.
    """
    path = Path(path).expanduser()
    try:
        return _open_folder(path, whole) if os.path.isdir(path) else _open_file(path, whole)
    except PermissionError:
        raise WeightsError(_no_permission(path)) from None


def _open_file(path: Path, whole: bool) -> WeightSource:
    try:
        check_file(path)
    except DocumentError as error:
        if error.reason == MISSING:
            raise WeightsError(f"weights '{path}' do not exist; download them or correct the path") from None
        raise WeightsError(f"cannot read weights '{path}': {error.reason}") from None
    if path.suffix == ".safetensors":
        tensors, container, extras = dict(guarded(path, lambda: _safetensors_shapes(path, whole))), "safetensors", {}
    else:
        container = "torch" if is_zip(path) else "torch, legacy"
        tensors, extras = next(iter(guarded(path, lambda: _torch_shapes(path, whole))))
    return WeightSource(path, tensors, extras, container, dict.fromkeys(tensors, path))


def _torch_shapes(path: Path, whole: bool) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    if is_zip(path):
        check_zip(path, whole)
    payload = load_pickled(path)
    if not isinstance(payload, dict):
        raise WeightsError(f"weights '{path}' hold a {type(payload).__name__}, not a dictionary of tensors")
    state, extras = _unwrap(payload)
    if any(tensor.is_meta for tensor in state.values()):
        raise ValueError("its tensors have no content")
    yield {name: _meta(name, tensor) for name, tensor in state.items()}, extras


def _safetensors_shapes(path: Path, whole: bool) -> Iterator[tuple[str, Tensor]]:
    check_header(path)
    problem = whole and path.name == WEIGHTS and sums_problem(path.parent, WEIGHTS)
    if problem:
        raise DamagedFile(problem)
    with safe_open(path, framework="pt") as handle:
        for name in handle.keys():  # noqa: SIM118
            part = handle.get_slice(name)
            dtype = _SAFETENSORS_DTYPES.get(part.get_dtype())
            if dtype is None:
                raise ValueError(f"tensor '{name}' is of type {part.get_dtype()}, which no weights here are")
            yield name, torch.empty(part.get_shape(), dtype=dtype, device="meta")


_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def _meta(name: str, tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise ValueError(f"tensor '{name}' is sparse or quantised, and no weights here are")
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _unwrap(payload: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of what `torch.load` gave, and the rest."""
    extras: dict[str, Any] = {}
    for key in WRAPPERS:
        inner = payload.get(key)
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            extras = {name: value for name, value in payload.items() if name != key}
            payload = inner
            break
    state = {repaired(str(name)): value for name, value in payload.items() if isinstance(value, Tensor)}
    return state, extras | {repaired(str(n)): v for n, v in payload.items() if not isinstance(v, Tensor)}


def _open_folder(folder: Path, whole: bool) -> WeightSource:
    for name in INDEXES:
        if os.path.isfile(folder / name):
            return _open_shards(folder, folder / name, whole)
    for name in SINGLE:
        if os.path.isfile(folder / name):
            return _open_file(folder / name, whole)
    next(folder.iterdir(), None)  # a folder that may not be listed says so, rather than that it is empty
    loose = sorted(p.name for p in folder.glob("*-of-*") if p.suffix in (".bin", ".safetensors"))
    if loose:
        index = INDEXES[0] if loose[0].endswith(".safetensors") else INDEXES[1]
        raise WeightsError(f"folder '{folder}' holds shards ({loose[0]}, ...) but no {index}; fetch that file too")
    if any(folder.glob("consolidated.*.pth")):
        raise WeightsError(
            f"folder '{folder}' holds LLaMA in Meta's own layout; convert it with transformers' LLaMA conversion first"
        )
    try:
        return _open_file(resolve_checkpoint(folder) / WEIGHTS, whole)
    except CheckpointError:
        looked = ", ".join((*SINGLE, *INDEXES))
        raise WeightsError(f"folder '{folder}' holds no weights; looked for {looked} and checkpoints/latest") from None


def _open_shards(folder: Path, index: Path, whole: bool) -> WeightSource:
    """The shards of an index, every claim of which is compared with the files."""
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not os.path.isfile(folder / name)]
    if missing:
        raise WeightsError(
            f"folder '{folder}' lacks {len(missing)} of the {len(names)} shards of its index: {shorten(missing)}; "
            "fetch them too"
        )
    shards = {name: _open_file(folder / name, whole) for name in names}
    tensors: dict[str, Tensor] = {}
    lies = []
    for name, file in weight_map.items():
        if name in shards[file].tensors:
            tensors[name] = shards[file].tensors[name]
        else:
            lies.append(f"{name} is not in {file}")
    for file, shard in shards.items():
        lies += [f"{file} holds {name}, which it does not list there" for name in shard.tensors if name not in tensors]
    if lies:
        raise WeightsError(f"index '{index}' does not describe its shards ({len(lies)}): {shorten(lies, 3)}")
    container = f"{shards[names[0]].container}, {len(names)} shards"
    return WeightSource(folder, tensors, {}, container, {name: folder / file for name, file in weight_map.items()})


def _weight_map(index: Path) -> dict[str, str]:
    try:
        plain = read_json(index)
    except DocumentError as error:
        raise WeightsError(f"index '{index}' {error.reason}; fetch it again") from None
    weight_map = plain.get("weight_map") if isinstance(plain, dict) else None
    if not isinstance(weight_map, dict):
        raise WeightsError(f"index '{index}' is not a JSON object with a weight_map; fetch it again")
    if not weight_map:
        raise WeightsError(f"index '{index}' lists no tensors; fetch it again")
    outside = sorted({str(f) for f in weight_map.values() if not isinstance(f, str) or Path(f).name != f})
    if outside:
        raise WeightsError(f"index '{index}' names files outside its folder: {shorten(outside)}")
    return weight_map


def guarded(path: Path, read: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """What `read` yields; every way in which a file can fail becomes one line that names it.

    An error of the consumer is none of the file's and passes through, because it is raised outside this frame.
    """
    try:
        yield from read()
    except WeightsError:
        raise
    except PermissionError:
        raise WeightsError(_no_permission(path)) from None
    except DamagedFile as error:
        raise WeightsError(f"weights '{path}' are damaged: {error}") from None
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from None
    except Exception as error:  # damage makes readers raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise WeightsError(f"cannot read weights '{path}': {reason}; is the download complete?") from None


def _refusal(path: Path, reason: str) -> str:
    asks = re.search(r"GLOBAL ([\w.]+)", reason)
    if asks:
        return (
            f"weights '{path}' are refused: unpickling them would call {asks.group(1)}, and weights are tensors and "
            "plain data; do not open this file otherwise unless you trust where it comes from"
        )
    return f"cannot read weights '{path}': not a readable pickle of tensors; is it one, and is the download complete?"


def _no_permission(path: Path) -> str:
    return f"no permission to read '{path}'; allow it for this user (chmod, chown) or name a copy"


def shorten(names: Iterable[str], most: int = 12) -> str:
    """The names, or the first `most` of them and how many more there are; in one line whatever they are."""
    names = list(names)
    more = f", ... and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(" ".join(name.split())[:200] for name in names[:most]) + more
