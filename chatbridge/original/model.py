"""The original's model: padding, truncation through media, the loss of nothing, dropout in generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.registry import MODELS
from chatbridge.models.chatbridge import ChatBridge, ChatBridgeConfig


@dataclass(kw_only=True)
class OriginalChatBridgeConfig(ChatBridgeConfig):
    """The keys of the model."""


@MODELS.variant("chatbridge", "original", config=OriginalChatBridgeConfig, help="the published code's quirks too")
class OriginalChatBridge(ChatBridge):
    """Takes the batches of `chatbridge.original.tasks`."""

    def train(self, mode: bool = True) -> OriginalChatBridge:
        """The language model, too (of no effect for LLaMA, which has no dropout)."""
        super().train(mode)
        nn.Module.train(self.llm, mode)
        return self

    def fuse(self, batch: MultimodalBatch) -> Tensor:
        """Padding on the left, which stands behind BOS, is zeros; nothing visible depends on it."""
        left_BL = batch.attention_mask_BL.cumsum(1) == 0
        padding_BL = left_BL & torch.isin(batch.input_ids_BL, batch.input_ids_BL.new_tensor(self.llm.eos_ids))
        return super().fuse(batch).masked_fill(padding_BL.unsqueeze(-1), 0.0)

    def rows_to_place(self, ids: list[str], modality: str, counts_B: list[int], rows_NRD: Tensor) -> Tensor:
        """Where truncation cut into media, the first rows of every sample.

        A batch has equally many media in every sample, which is what tells whose rows are whose.
        """
        rows_ND = rows_NRD.flatten(0, 1)
        if sum(counts_B) == len(rows_ND):
            return rows_ND
        each, rest = divmod(len(rows_ND), len(counts_B))
        if rest or max(counts_B) > each:
            raise ValueError(f"{modality}: {sum(counts_B)} positions in the text for {len(rows_ND)} rows")
        return torch.cat([rows[:count] for rows, count in zip(rows_ND.split(each), counts_B, strict=True)])

    def mean_loss(self, total: Tensor, supervised: int) -> Tensor:
        """Not a number where nothing is supervised."""
        return super().mean_loss(total, supervised) if supervised else total + float("nan")

    def generating(self) -> None:
        """The Q-Former's dropout stays on."""
        super().generating()
        for bridge in self.bridges.values():
            bridge.projector.train()
