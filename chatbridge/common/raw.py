"""Media that the model's device finishes: data-loader workers hand on what the files hold, in few bytes.

A `RawMedia` stands in a batch where a finished tensor [N, T, ...] would, and the bridge that it goes over finishes
it, all media of the batch at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from chatbridge.common.shared import Rows, stacked


class RawMedia(ABC):
    """N media of one modality before what needs no file was done: normalising, filter banks.

    A processor's `load` gives one with N = 1.
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

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, as they travel."""
        parts = [getattr(self, name) for name in getattr(self, "__dataclass_fields__", ())]
        return sum(part.nbytes for part in parts if isinstance(part, Tensor))

    @abstractmethod
    def finished(self) -> Tensor:
        """float32 [N, T, ...], on the device where the data are."""

    @classmethod
    @abstractmethod
    def joined(cls, media: Sequence[RawMedia]) -> RawMedia:
        """One batch of several that agree in `shape` and `settings`."""

    def moved(self, modality: str, rows: Rows) -> RawMedia:
        """The same medium (N = 1) at its place in the memory of its batch, where it has one there."""
        return self

    @abstractmethod
    def to(self, device: torch.device | str, non_blocking: bool = False) -> RawMedia:
        """The same media on a device."""

    @abstractmethod
    def pin_memory(self) -> RawMedia:
        """The same media in page-locked memory."""


def finished(media: Tensor | RawMedia) -> Tensor:
    """Media [N, T, ...] as the encoders take them."""
    return media.finished() if isinstance(media, RawMedia) else media


def stack_media(media: Sequence[Tensor | RawMedia]) -> Tensor | RawMedia:
    """Media [T, ...] of one shape as one batch: raw ones stay so where all of them are, and alike.

    In a data-loader worker the batch is written straight into the memory that the training process reads.
    """
    raw = [medium for medium in media if isinstance(medium, RawMedia)]
    if len(raw) == len(media) and len({(type(medium), medium.settings) for medium in raw}) == 1:
        return type(raw[0]).joined(raw)
    return stacked([medium.finished()[0] if isinstance(medium, RawMedia) else medium for medium in media])
