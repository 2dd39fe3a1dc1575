"""ChatBridge (arXiv 2305.16103): frozen encoders joined to a frozen language model by trainable perceivers.

Encode, perceive, fuse, decode. Stage 1 and stage 2 differ in their batches, not in this file. Shape letters:
`chatbridge.common.batch`; K counts supervised positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbridge.common.batch import IGNORE, TEXT, MultimodalBatch
from chatbridge.common.registry import LLMS, MODELS
from chatbridge.common.schema import key
from chatbridge.contracts import RowsOf
from chatbridge.models.bridge import Bridge, BridgeConfig
from chatbridge.models.llm import Stop
from chatbridge.models.row_counts import RowCount
from chatbridge.weights.loading import load_checkpoint, load_trainable
from chatbridge.weights.pretrained import from_pretrained, save_pretrained


@dataclass(kw_only=True)
class ChatBridgeConfig:
    llm: Any = key(help="the frozen language model", registry=LLMS)
    bridges: dict[str, BridgeConfig] = key(help="the ways of media into it, by names of your choice")
    share_perceivers: bool = key(
        False, help="one projector for all bridges (qformer: a query bank each), as in published checkpoints"
    )
    freeze_perceivers: bool = key(False, help="train temporal embeddings and the last layer of projectors only")
    weights: list[str] = key(
        [], help="checkpoints to start from, in this order: ours, the original's, BLIP-2's, MiniGPT-4's", path=True
    )


@dataclass
class ChatBridgeOutput:
    """What `ChatBridge.forward` returns.

    Attributes:
        loss: mean cross-entropy over supervised tokens, fp32 scalar.
        loss_sum: its numerator, for weighting by tokens over micro-batches and ranks.
        supervised_tokens: its denominator, K.
        sample_losses_B: the mean of each sample, 0 where nothing is supervised; detached. Of packed batches, too, one
            for each of the batch's `ids`.
        sample_tokens_B: supervised tokens of each sample.
        logits_KV: logits that predict the supervised tokens, row by row; only when asked for.
    """

    loss: Tensor
    loss_sum: Tensor
    supervised_tokens: int
    sample_losses_B: Tensor
    sample_tokens_B: Tensor
    logits_KV: Tensor | None = None


@MODELS.register("chatbridge", config=ChatBridgeConfig)
class ChatBridge(nn.Module):
    """The whole model. Projectors, adapters and temporal embeddings learn, and what a language model adds to itself.

    Args:
        config: the parts.
        llm: a language model already in memory, instead of the one `config.llm` names.

    Attributes:
        every_branch: in training, give parameters of absent modalities gradients too, of zeros. Processes that train
            together need it: each waits for the others' gradients of every parameter.

    Raises:
        ValueError: for parts that do not go together, and weights that do not fit.
    """

    def __init__(self, config: ChatBridgeConfig, llm: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.llm = llm if llm is not None else LLMS.build(config.llm)
        self.bridges = nn.ModuleDict()
        self._route: dict[str, str] = {}
        self.every_branch = False
        shared: Bridge | None = None
        for name, bridge_config in config.bridges.items():
            self._enter(name, bridge_config.modalities)
            self.bridges[name] = Bridge(bridge_config, self.llm.width, shared)
            if config.share_perceivers and shared is None:
                shared = self.bridges[name]
        if not self._route:
            raise ValueError("model.bridges is empty; a model needs at least one bridge with one modality")
        if config.freeze_perceivers:
            for bridge in self.bridges.values():
                bridge.freeze_perceiver()
        if self.device.type != "meta":
            self._start(config)

    def _enter(self, name: str, modalities: list[str]) -> None:
        if not name.isidentifier() or hasattr(self.bridges, name):  # "keys" and the like are ModuleDict's own
            raise ValueError(f"bridge '{name}': take another name, of letters, digits and underscores")
        if not modalities:
            raise ValueError(f"bridge '{name}' serves no modality; list at least one under modalities")
        for modality in modalities:
            if modality in self._route:
                raise ValueError(f"bridges '{self._route[modality]}' and '{name}' both serve '{modality}'; keep one")
            self._route[modality] = name

    def _start(self, config: ChatBridgeConfig) -> None:
        """Scales and weights, for which tensors must be real."""
        for name, bridge_config in config.bridges.items():
            if bridge_config.projection_scale == "auto":
                self.bridges[name].scale_rows(self.llm.embedding_norm())
        for path in config.weights:
            load_checkpoint(self, path)

    @property
    def device(self) -> torch.device:
        return next(iter(self.bridges.values())).norm.weight.device

    @property
    def rows(self) -> dict[str, RowsOf]:
        """Modality -> how many rows a medium of shape [T, ...] becomes."""
        return {modality: self.bridges[name].rows for modality, name in self._route.items()}

    @staticmethod
    def rows_of(config: ChatBridgeConfig) -> dict[str, RowsOf]:
        """The same of a configuration: before there is a model, and small enough for data workers."""
        counts = {name: RowCount(b.encoder, b.chosen, name) for name, b in config.bridges.items()}
        return {modality: counts[name] for name, b in config.bridges.items() for modality in b.modalities}

    def bridge_of(self, modality: str) -> Bridge:
        """The bridge that serves a modality. Raises ValueError when there is none."""
        if modality not in self._route:
            known = ", ".join(sorted(self._route))
            raise ValueError(
                f"no bridge serves '{modality}'; this model knows {known}; add it to a bridge's modalities"
            )
        return self.bridges[self._route[modality]]

    def encode(self, modality: str, media_NT: Tensor) -> Tensor:
        """Media [N, T, ...] to rows [N, R, D]."""
        return self.bridge_of(modality)(media_NT)

    def fuse(self, batch: MultimodalBatch) -> Tensor:
        """Embeddings [B, L, D] of a batch: tokens from the language model's table, media from their bridges.

        Raises:
            ValueError: when the positions kept for a modality are not as many as the rows its media give.
        """
        counts_MB = _positions_per_modality(batch)
        embeds_BLD = self.llm.embed(batch.input_ids_BL)
        for modality, counts_B in zip(batch.modalities, counts_MB, strict=True):
            rows_ND = self.rows_to_place(batch.ids, modality, counts_B, self.encode(modality, batch.media[modality]))
            mask_BL = batch.slot_mask_BL(modality)
            embeds_BLD = embeds_BLD.masked_scatter(mask_BL.unsqueeze(-1), rows_ND.to(embeds_BLD.dtype))
        if self.training and self.every_branch:
            embeds_BLD = embeds_BLD + self._idle_branches(batch).to(embeds_BLD.dtype)
        return embeds_BLD

    def rows_to_place(self, ids: list[str], modality: str, counts_B: list[int], rows_NRD: Tensor) -> Tensor:
        """The rows [positions, D] that go into a modality's positions, of which each sample has `counts_B`.

        Raises:
            ValueError: when they are not as many as the positions.
        """
        _check_counts(ids, modality, counts_B, *rows_NRD.shape[:2])
        return rows_NRD.flatten(0, 1)

    def _idle_branches(self, batch: MultimodalBatch) -> Tensor:
        """Zero, by way of every trainable parameter that this batch has no use for."""
        used = self.branches_of(batch)
        idle = [p for name, branch in self.branches().items() if name not in used for p in branch]
        return sum(((p * 0.0).sum() for p in idle), torch.zeros((), device=self.device))

    def branches_of(self, batch: MultimodalBatch) -> set[str]:
        """Names, as in `branches`, of what this batch's media go through."""
        return {self._route[modality] for modality in batch.modalities}

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters that a batch may leave unused, by bridge; shared ones stand under each."""
        return {name: [p for p in bridge.parameters() if p.requires_grad] for name, bridge in self.bridges.items()}

    def forward(self, batch: MultimodalBatch, return_logits: bool = False) -> ChatBridgeOutput:
        """Loss of a batch. A batch without one supervised token has loss 0, gradients 0."""
        embeds_BLD = self.fuse(batch)
        keep_BL = torch.zeros_like(batch.labels_BL, dtype=torch.bool)
        keep_BL[:, :-1] = batch.labels_BL[:, 1:] != IGNORE
        owners_K = _owners(batch)[keep_BL]
        sample_tokens_B = owners_K.new_zeros(_sample_count(batch)).index_add(0, owners_K, torch.ones_like(owners_K))
        supervised = len(owners_K)
        mask = batch.attention_mask_BL if batch.samples_BL is None else self.llm.block_mask(batch.samples_BL)
        logits_KV = self.llm.logits_at(embeds_BLD, mask, _positions(batch), keep_BL)
        targets_K = batch.labels_BL[:, 1:][keep_BL[:, :-1]]
        losses_K = F.cross_entropy(logits_KV, targets_K, reduction="none")
        sums_B = torch.zeros(len(sample_tokens_B), device=losses_K.device).index_add(0, owners_K, losses_K.detach())
        total = losses_K.sum()
        return ChatBridgeOutput(
            loss=self.mean_loss(total, supervised),
            loss_sum=total,
            supervised_tokens=supervised,
            sample_losses_B=sums_B / sample_tokens_B.clamp_min(1),
            sample_tokens_B=sample_tokens_B,
            logits_KV=logits_KV if return_logits else None,
        )

    def mean_loss(self, total: Tensor, supervised: int) -> Tensor:
        """The loss, of its sum over so many supervised tokens."""
        return total / max(supervised, 1)

    def generating(self) -> None:
        """Go into the mode that `generate` runs in."""
        self.eval()

    @torch.no_grad()
    def generate(
        self,
        batch: MultimodalBatch,
        max_new_tokens: int,
        num_beams: int = 1,
        do_sample: bool = False,
        top_p: float = 1.0,
        temperature: float = 1.0,
        stop: Stop | None = None,
        seed: int | None = None,
        streamer: Any = None,
    ) -> list[list[int]]:
        """New token ids of every sample, without the end token.

        Args:
            batch: left-padded prompts.
            stop: whether a row is finished, by its new ids.

        Raises:
            ValueError: when the batch is padded on the right.
        """
        if not bool(batch.attention_mask_BL[:, -1].all()):
            raise ValueError("prompts for generation must be padded on the left; collate them for generation")
        was_training = self.training
        try:
            self.generating()
            ids = self.llm.generate(
                self.fuse(batch),
                batch.attention_mask_BL,
                max_new_tokens,
                num_beams=num_beams,
                do_sample=do_sample,
                top_p=top_p,
                temperature=temperature,
                stop=stop,
                seed=seed,
                streamer=streamer,
            )
        finally:
            self.train(was_training)
        return [self.llm.trim(row, stop) for row in ids.tolist()]

    def trainable_state(self) -> dict[str, Tensor]:
        """The trainable tensors by name, each once (a shared one under the first bridge that has it)."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Write the whole model to a folder (`chatbridge.weights.pretrained.save_pretrained`)."""
        return save_pretrained(self, folder, **options)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> ChatBridge:
        """The model of such a folder, or of the hub (`chatbridge.weights.pretrained.from_pretrained`)."""
        return from_pretrained(name_or_path, **options)

    def load_trainable(self, state: Mapping[str, Tensor], where: str = "checkpoint") -> None:
        """Fill the trainable tensors from what `trainable_state` gave.

        Raises:
            ValueError: listing every missing, unexpected and misshapen tensor, or naming one that holds NaN; nothing
                is loaded then.
        """
        load_trainable(self, state, where)


def _sample_count(batch: MultimodalBatch) -> int:
    return len(batch.input_ids_BL) if batch.samples_BL is None else len(batch.ids)


def _owners(batch: MultimodalBatch) -> Tensor:
    """The number of the sample that each position belongs to [B, L]; padding counts for any, it holds nothing."""
    if batch.samples_BL is not None:
        return batch.samples_BL.clamp_min(0)
    rows, length = batch.input_ids_BL.shape
    return torch.arange(rows, device=batch.input_ids_BL.device)[:, None].expand(rows, length)


def _positions_per_modality(batch: MultimodalBatch) -> list[list[int]]:
    """For each of the batch's modalities, its positions in every sample; one wait for the device, not one each."""
    kinds = len(batch.modalities) + 2
    places = (_owners(batch) * kinds + (batch.slots_BL - TEXT).clamp_max(kinds - 1)).flatten()
    counts = places.new_zeros(_sample_count(batch) * kinds).index_add(0, places, torch.ones_like(places))
    _, *counts_MB, stray_B = counts.unflatten(0, (-1, kinds)).T.tolist()
    if any(stray_B):
        raise ValueError(
            f"the text has slots for more modalities than the batch holds media of "
            f"({', '.join(batch.modalities) or 'none'}); samples {', '.join(batch.ids)}"
        )
    return counts_MB


def _check_counts(ids: list[str], modality: str, counts_B: list[int], media: int, rows: int) -> None:
    positions = sum(counts_B)
    if positions != media * rows:
        raise ValueError(
            f"{modality}: {positions} positions in the text for {media * rows} rows ({media} media of {rows}); "
            f"samples {', '.join(ids)}"
        )
    for name, count in zip(ids, counts_B, strict=True):
        if count % rows:
            raise ValueError(f"{modality}: sample '{name}' has {count} positions, not a multiple of {rows} rows")


def _positions(batch: MultimodalBatch) -> Tensor:
    """The batch's position ids, or those that count visible positions only."""
    if batch.position_ids_BL is not None:
        return batch.position_ids_BL
    return (batch.attention_mask_BL.cumsum(1) - 1).clamp_min(0)
