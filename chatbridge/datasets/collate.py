"""Tokenised samples and their media to one `MultimodalBatch`: padded, or packed first-fit; how many make a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from chatbridge.common.batch import IGNORE, MIXED, TEXT, MultimodalBatch, RawMedia, stack_media
from chatbridge.common.tokenizer import Tokenizer
from chatbridge.conversation.tokens import TokenizedSample


@dataclass(slots=True)
class Example:
    """A tokenised sample with what goes into its slots.

    Attributes:
        tokens: ids, labels and slots.
        media: modality -> tensors [T, ...] (or raw media of N = 1), one per medium, in the order of the sample's slots.
    """

    tokens: TokenizedSample
    media: dict[str, list[Tensor | RawMedia]] = field(default_factory=dict)


@dataclass
class Collator:
    """Pads samples to one length, puts BOS in front and stacks the media. Picklable, for data-loader workers.

    Args:
        bos_id: id put in front of every sample; None for models without one.
        pad_id: id at padded positions (masked, never supervised).
        padding: "right" (training) or "left" (generation).
        pack: positions of a row that several samples share, first-fit; None gives each sample a row of its own.
    """

    bos_id: int | None
    pad_id: int
    padding: str = "right"
    pack: int | None = None

    def __post_init__(self) -> None:
        if self.padding not in ("left", "right"):
            raise ValueError(f"padding is 'left' or 'right', not '{self.padding}'")
        if self.pack is not None and self.padding == "left":
            raise ValueError("rows that are padded on the left cannot be packed; remove the datasets' key pack")

    @classmethod
    def of(cls, tokenizer: Tokenizer, padding: str = "right") -> Collator:
        """A collator with the ids of a tokenizer."""
        return cls(tokenizer.bos_id, tokenizer.pad_id, padding)

    def __call__(self, examples: Sequence[Example], sources: str | Sequence[str] = "") -> MultimodalBatch:
        """One batch.

        Args:
            sources: the dataset that the examples are from, or that of each.

        Raises:
            ValueError: no examples; media that do not match the slots (with both counts); shapes that differ.
        """
        if not examples:
            raise ValueError("a batch needs at least one sample")
        sources = [sources] * len(examples) if isinstance(sources, str) else list(sources)
        prefix = [] if self.bos_id is None else [self.bos_id]
        rows = [[example] for example in examples]
        if self.pack is not None:
            packed = first_fit([len(prefix) + len(example.tokens) for example in examples], self.pack)
            rows = [[examples[number] for number in row] for row in packed]
            examples = [example for row in rows for example in row]
            sources = [sources[number] for row in packed for number in row]
        media = _stack_media(examples, sources)
        tensors = self._rows(rows, prefix, sorted(media))
        return MultimodalBatch(
            ids=[example.tokens.id for example in examples],
            media=media,
            dataset=sources[0] if len(set(sources)) == 1 else MIXED,
            sources=sources,
            **tensors,
        )

    def _rows(self, rows: list[list[Example]], prefix: list[int], modalities: list[str]) -> dict[str, Tensor]:
        """The batch's tensors [B, L], by the names of its fields."""
        sizes = [sum(len(prefix) + len(example.tokens) for example in row) for row in rows]
        shape = len(rows), max(sizes)
        # Filled as arrays: so many small writes take four times as long on tensors.
        ids, labels = np.full(shape, self.pad_id, np.int64), np.full(shape, IGNORE, np.int64)
        mask, slots = np.zeros(shape, np.int64), np.full(shape, TEXT, np.int64)
        positions, samples = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        number = 0
        for row, (examples, size) in enumerate(zip(rows, sizes, strict=True)):
            start = 0 if self.padding == "right" else shape[1] - size
            for example in examples:
                tokens, first = example.tokens, start + len(prefix)
                end = first + len(tokens)
                ids[row, start:end] = prefix + tokens.input_ids
                mask[row, start:end] = 1
                labels[row, first:end] = tokens.labels
                if self.pack is not None:
                    positions[row, start:end] = np.arange(end - start)
                    samples[row, start:end] = number
                    labels[row, start] = IGNORE  # in a row of its own, nothing would predict it
                for slot in tokens.slots:
                    at = first + slot.start
                    slots[row, at : at + slot.length] = modalities.index(slot.modality)
                start, number = end, number + 1
        arrays = {"input_ids_BL": ids, "attention_mask_BL": mask, "labels_BL": labels, "slots_BL": slots}
        if self.pack is not None:
            arrays |= {"position_ids_BL": positions, "samples_BL": samples}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _stack_media(examples: Sequence[Example], sources: Sequence[str]) -> dict[str, Tensor | RawMedia]:
    """Modality -> [N, T, ...], sample by sample, after the counts and shapes were compared."""
    gathered: dict[str, list[Tensor | RawMedia]] = {}
    shapes: dict[str, dict[tuple[int, ...], str]] = {}  # modality -> shape -> the first dataset with it
    for example, source in zip(examples, sources, strict=True):
        wanted: dict[str, int] = {}
        for slot in example.tokens.slots:
            wanted[slot.modality] = wanted.get(slot.modality, 0) + slot.count
        for modality in wanted.keys() | example.media.keys():
            given = len(example.media.get(modality, ()))
            if given != wanted.get(modality, 0):
                raise ValueError(
                    f"sample '{example.tokens.id}' has slots for {wanted.get(modality, 0)} media of "
                    f"'{modality}', but {given} were loaded"
                )
        for modality in wanted:
            gathered.setdefault(modality, []).extend(example.media[modality])
            for tensor in example.media[modality]:
                shapes.setdefault(modality, {}).setdefault(tuple(tensor.shape), source)
    for modality, found in shapes.items():
        if len(found) > 1:
            shapes_found = ", ".join(
                f"{shape} in '{source}'" if source else str(shape) for shape, source in found.items()
            )
            names = ", ".join(example.tokens.id for example in examples)
            raise ValueError(
                f"media of '{modality}' differ in shape within one batch: {shapes_found} (samples {names})"
            )
    return {modality: stack_media(tensors) for modality, tensors in sorted(gathered.items())}


class PackedRows:
    """Rows of `capacity` positions; each sample goes into the first that has room for it, else into a new one.

    Args:
        limit: rows at most; None for any number.
    """

    def __init__(self, capacity: int, limit: int | None = None):
        self.capacity, self.limit = capacity, limit
        self.rows: list[list[int]] = []
        self._free: list[int] = []

    def add(self, number: int, length: int) -> bool:
        """Put a sample into a row; False where there is no room."""
        row = next((row for row, free in enumerate(self._free) if length <= free), len(self.rows))
        if row == len(self.rows):
            if self.limit is not None and row >= self.limit:
                return False
            self.rows.append([])
            self._free.append(self.capacity)
        self.rows[row].append(number)
        self._free[row] -= length
        return True


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The numbers of the samples in each row. Raises ValueError for a sample longer than a row."""
    packed = PackedRows(capacity)
    for number, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"a sample of {length} positions does not fit into a row of {capacity}; raise pack")
        packed.add(number, length)
    return packed.rows


class TokenBudget:
    """Says, sample after sample, whether one more fits into a batch.

    Args:
        positions: the batch's budget, padding included; pack: positions of a packed row, None for a row each.
    """

    def __init__(self, positions: int, pack: int | None = None):
        self.positions = positions
        self.packed = PackedRows(pack, max(1, positions // pack)) if pack is not None else None
        self.count = self.longest = 0

    def add(self, length: int) -> bool:
        """Count a sample in, or return False and leave it out; the first always fits."""
        longest = max(self.longest, length)
        if self.packed is not None:
            fits = self.packed.add(self.count, length)
        else:
            fits = self.count == 0 or (self.count + 1) * longest <= self.positions
        if fits:
            self.count, self.longest = self.count + 1, longest
        return fits
