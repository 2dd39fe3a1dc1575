"""Instruments that check predictions: bytes kept for the backward pass, and bytes alive at the worst moment.

Both count storages, a shared one once, as the allocator does, and both work on any device, fake tensors included, so
that a step of the real size can be measured on a machine without a GPU and without the memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SavedBytes:
    """Inside ``with SavedBytes(model) as saved:``, counts what autograd keeps, the model's own tensors left out.

    Attributes:
        total: bytes so far.
    """

    def __init__(self, model: nn.Module):
        own = [*model.parameters(), *model.buffers()]
        self._own = {t.untyped_storage()._cdata for t in own}
        self._kept: dict[int, Any] = {}

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._kept[storage._cdata] = storage  # kept alive, so that its address is not given to another
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


class LiveBytes(TorchDispatchMode):
    """Inside ``with LiveBytes(tensors) as live:``, follows every storage from its making to its end.

    What a kernel takes and gives back inside itself is not seen, nor what an allocator loses to fragmentation.

    Args:
        tensors: what is there already, weights for instance.

    Attributes:
        now, peak: bytes alive, and the most there were.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in tensors:
            self._enter(tensor)

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._enter(leaf)
        return out


def as_fake(model: nn.Module) -> FakeTensorMode:
    """Turn a model on the meta device, in place, into one of fake CPU tensors; returns the mode to run it in.

    Fake tensors have a device and a type but no content: autocast works, attention takes its fused path, and a model
    of 28 GB takes no memory. What depends on values (`nonzero`, `item`) does not run.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, nn.Parameter] = {}
    parameters = list(model.parameters())  # held, so that no address is used twice
    with mode:
        for module in model.modules():
            for name, tensor in list(module._parameters.items()):
                if tensor is not None:
                    if id(tensor) not in made:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                        made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                    module._parameters[name] = made[id(tensor)]
            for name, tensor in list(module._buffers.items()):
                if tensor is not None:
                    module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
    assert len(made) == len(parameters)
    return mode


def fake_loss(model: Any, shape: Any) -> Tensor:
    """The loss of a batch of a `BatchShape` without values: what `ChatBridge.forward` computes, step by step.

    Only the places that ask for values are other: the rows of media go to the first positions, and the supervised
    positions are the last ones of every sample.
    """
    samples, length = shape.samples, int(shape.length)
    per_sample = int(shape.supervised) // samples
    ids_BL = torch.zeros(samples, length, dtype=torch.long)
    embeds_BLD = model.llm.embed(ids_BL)
    for modality, media in shape.media.items():
        given = torch.zeros(int(media.count), media.steps, *media.step_shape)
        rows_ND = model.encode(modality, given).flatten(0, 1)
        mask_BL = torch.zeros(samples, length, dtype=torch.bool)
        embeds_BLD = embeds_BLD.masked_scatter(mask_BL.unsqueeze(-1), rows_ND.to(embeds_BLD.dtype))
    mask = torch.ones(samples, 1, length, length, dtype=torch.bool)  # a padded batch has such a one
    positions_BL = torch.arange(length).expand(samples, length)
    body = model.llm.model.base_model
    hidden = body(inputs_embeds=embeds_BLD, attention_mask=mask, position_ids=positions_BL, use_cache=False)
    wanted = hidden.last_hidden_state[:, length - per_sample :].flatten(0, 1)
    logits_KV = model.llm.model.get_output_embeddings()(wanted).float()
    targets_K = torch.zeros(len(logits_KV), dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits_KV, targets_K, reduction="none").sum()
