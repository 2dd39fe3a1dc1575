"""The one batch type that travels from the data loader to the model, and media that the device preprocesses.

Shape letters, used as suffixes all over the package:
    B samples, L token positions, N media of one modality in the batch, T frames or clips of one medium,
    Q query tokens of a projector, R rows of one medium, S encoder tokens of a frame or clip, E encoder width,
    P width of a projector, D width of the LLM, V vocabulary.
Where samples are packed, several to a row, B counts rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatbridge.common.ledger import LedgerEntry

IGNORE = -100
"""Label of a position that carries no loss (PyTorch's default ``ignore_index``)."""

TEXT = -1
"""Value in `MultimodalBatch.slots_BL` of a position that holds a text token (or padding)."""

MIXED = "mixed"
"""What stands for the dataset of a batch whose samples may be from several."""


class RawMedia(ABC):
    """N media of one modality that the model's device preprocesses: data-loader workers hand on what the files hold.

    Stands in a batch where a finished tensor [N, T, ...] would; the bridge finishes all media of a batch at once. A
    processor's `load` gives one with N = 1. Subclasses are dataclasses.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """[T, ...] of one medium when it is finished."""

    @property
    @abstractmethod
    def settings(self) -> Hashable:
        """What the media of one batch must have in common to be finished together."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def finished(self) -> Tensor:
        """float32 [N, T, ...], on the device where the data are."""

    @classmethod
    @abstractmethod
    def joined(cls, media: Sequence[RawMedia]) -> RawMedia:
        """One batch of several that agree in `shape` and `settings`."""

    def tensors(self) -> dict[str, Tensor]:
        """Its fields that are tensors, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, as they travel."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def map(self, change: Callable[[Tensor], Tensor]) -> RawMedia:
        """The same media with every tensor changed: moved to a device, pinned, shared."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RawMedia:
        """The same media on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))


def finished(media: Tensor | RawMedia) -> Tensor:
    """Media [N, T, ...] as the encoders take them."""
    return media.finished() if isinstance(media, RawMedia) else media


def mapped(media: Tensor | RawMedia, change: Callable[[Tensor], Tensor]) -> Tensor | RawMedia:
    """Media with every tensor of theirs changed."""
    return media.map(change) if isinstance(media, RawMedia) else change(media)


def stack_media(media: Sequence[Tensor | RawMedia]) -> Tensor | RawMedia:
    """Media [T, ...] of one shape as one batch: raw ones stay so where all of them are, and alike."""
    raw = [medium for medium in media if isinstance(medium, RawMedia)]
    if len(raw) == len(media) and len({(type(medium), medium.settings) for medium in raw}) == 1:
        return type(raw[0]).joined(raw)
    return torch.stack([medium.finished()[0] if isinstance(medium, RawMedia) else medium for medium in media])


@dataclass
class MultimodalBatch:
    """Token ids with runs of placeholders where media go, and the media that go there.

    Attributes:
        ids: the samples' ids, in reading order: B of them, more where they are packed.
        input_ids_BL: int64 token ids; at a media position, any valid id (it is never looked up).
        attention_mask_BL: int64, 1 at real positions.
        labels_BL: int64, the token itself where it is supervised, `IGNORE` elsewhere (not shifted).
        slots_BL: int64, `TEXT` or the index into `modalities` of the medium at this position.
        media: modality name -> tensor [N, T, ...] (or `RawMedia` of N), in reading order: sample by sample, and inside
            a sample as its slots come.
        position_ids_BL: int64, or None for those that follow from the attention mask.
        samples_BL: int64, where samples are packed: the number of the sample at each position (an index into `ids`,
            growing in reading order), -1 at padding. None: a row is a sample.
        dataset: the dataset this batch was drawn from; `MIXED` where every sample was drawn on its own. The same on
            all ranks.
        sources: per id, the dataset that it was drawn from.
        ledger: what could not be read on the way to this batch, and what took its place.
        cursor: dataset -> worker -> where its stream stands behind this batch (plain values), for datasets whose
            position is not a function of the step alone.
    """

    ids: list[str]
    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    labels_BL: Tensor
    slots_BL: Tensor
    media: dict[str, Tensor | RawMedia] = field(default_factory=dict)
    position_ids_BL: Tensor | None = None
    samples_BL: Tensor | None = None
    dataset: str = ""
    sources: list[str] = field(default_factory=list)
    ledger: list[LedgerEntry] = field(default_factory=list)
    cursor: dict[str, dict[int, Any]] = field(default_factory=dict)

    @property
    def modalities(self) -> list[str]:
        """Names that the numbers in `slots_BL` stand for: the sorted keys of `media`."""
        return sorted(self.media)

    def slot_mask_BL(self, modality: str) -> Tensor:
        """Boolean [B, L]: the positions that the rows of this modality's media fill."""
        return self.slots_BL == self.modalities.index(modality)

    @property
    def supervised_tokens(self) -> int:
        """How many positions carry loss (the first position of a row has nothing to predict it)."""
        return int((self.labels_BL[:, 1:] != IGNORE).sum())

    def map(self, change: Callable[[Tensor], Tensor]) -> MultimodalBatch:
        """The same batch with every tensor changed, those of raw media, too."""
        changed = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, media={name: mapped(media, change) for name, media in self.media.items()}, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MultimodalBatch:
        """The same batch with every tensor on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MultimodalBatch:
        """The same batch in page-locked memory (called by PyTorch's data loader)."""
        return self.map(Tensor.pin_memory)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: its numbers per position by value. PyTorch would send a file descriptor for each tensor."""
        return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = {name: torch.from_numpy(value) for name, value in state.items() if isinstance(value, np.ndarray)}
        vars(self).update(state | arrays)
