"""Media that the model's device preprocesses: data-loader workers hand on what the files hold, in few bytes.

A `RawMedia` stands in a batch where a finished tensor [N, T, ...] would, and the bridge that it goes over finishes
it, all media of the batch at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor


class RawMedia(ABC):
    """N media of one modality before what needs no file was done: normalising, filter banks.

    A processor's `load` gives one with N = 1. Subclasses are dataclasses.
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
