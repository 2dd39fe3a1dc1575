"""A bridge: the way of one kind of media into the language model.

    media -> encoder -> norm -> (adapter) -> (temporal embedding) -> perceiver -> projection -> rows

A bridge may serve several modalities: an image is a video of one frame. Shape letters: `chatbridge.common.batch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbridge.common.raw import RawMedia, finished
from chatbridge.common.registry import ENCODERS
from chatbridge.common.schema import key
from chatbridge.models.perceiver import Perceiver, PerceiverConfig, unshareable
from chatbridge.weights import WeightsError


@dataclass(kw_only=True)
class BridgeConfig:
    modalities: list[str] = key(help="names of the media that go over this bridge, for instance [image, video]")
    encoder: Any = key(help="the frozen encoder", registry=ENCODERS)
    perceiver: PerceiverConfig = key(PerceiverConfig, help="query bank and Q-Former")
    norm_trainable: bool = key(False, help="train the layer norm after the encoder")
    adapter: str = key(
        "auto", help="linear layer before the perceiver: where widths differ, or always", choices=("auto", "always")
    )
    temporal_positions: int = key(
        0, help="learned embeddings of the frame or clip number; 0 for none", low=0, high=1 << 16
    )
    temporal_std: float = key(0.0, help="standard deviation of fresh ones; published: zeros", low=0.0, high=100.0)
    projection_scale: str | None = key(
        None, help="'auto': start with rows as long as the language model's embeddings on average", choices=("auto",)
    )


class Fp32LayerNorm(nn.LayerNorm):
    """Layer norm that computes in fp32 and answers in the type it was given; epsilon 1e-5."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class Bridge(nn.Module):
    """Media [N, T, ...] to rows [N, Q, D] for the language model.

    Args:
        config: the parts.
        llm_width: D.
        shared: a bridge whose Q-Former and projection this one uses too; None for its own.

    Attributes:
        encoder: frozen, always in eval mode.
        num_queries: Q.

    Raises:
        ValueError: when the perceivers cannot be shared.
    """

    def __init__(self, config: BridgeConfig, llm_width: int, shared: Bridge | None = None):
        super().__init__()
        self.encoder = _build(config.encoder).requires_grad_(False).eval()
        self.norm = Fp32LayerNorm(self.encoder.width).requires_grad_(config.norm_trainable)
        width = config.perceiver.encoder_width or self.encoder.width
        self.encoder_width = width
        if shared is not None:
            _check_shareable(config, width, shared)
        self.config = config
        wanted = config.adapter == "always" or width != self.encoder.width
        self.adapter = nn.Linear(self.encoder.width, width) if wanted else None
        positions = config.temporal_positions
        temporal = config.temporal_std * torch.randn(1, positions, 1, width)
        self.temporal = nn.Parameter(temporal) if positions else None
        self.perceiver = Perceiver(config.perceiver, width, shared.perceiver.qformer if shared else None)
        self.projection = shared.projection if shared else nn.Linear(config.perceiver.width, llm_width)
        self.num_queries = config.perceiver.num_queries

    def forward(self, media_NT: Tensor | RawMedia) -> Tensor:
        return self.perceive(self.features(media_NT))

    @torch.no_grad()
    def features(self, media_NT: Tensor | RawMedia) -> Tensor:
        """The frozen part: media [N, T, ...] to encoder tokens [N, T, S, E], all frames in one encoder call.

        Raw media are finished here: workers and the way to the device carry their smaller form.
        """
        media_NT = finished(media_NT)
        return self.encoder(media_NT.flatten(0, 1)).unflatten(0, media_NT.shape[:2])

    def perceive(self, features_NTSE: Tensor) -> Tensor:
        """The trainable part: encoder tokens [N, T, S, E] to rows [N, Q, D].

        Raises:
            ValueError: when media have more frames than there are temporal embeddings.
        """
        # The encoder may run in half precision; trainable weights are fp32 (under autocast this costs nothing).
        x = self.norm(features_NTSE).to(self.projection.weight.dtype)
        if self.adapter is not None:
            x = self.adapter(x)
        if self.temporal is not None:
            check_frames(self.config, x.shape[1])
            x = x + self.temporal[:, : x.shape[1]]
        return self.projection(self.perceiver(x.flatten(1, 2)))

    def train(self, mode: bool = True) -> Bridge:
        """As usual, but the encoder stays in eval mode, and so does a frozen norm or perceiver."""
        super().train(mode)
        self.encoder.eval()
        for part in (self.norm, self.perceiver):
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def freeze_perceiver(self) -> None:
        """Leave only temporal embeddings and projection trainable."""
        self.perceiver.requires_grad_(False).eval()
        if self.adapter is not None:
            self.adapter.requires_grad_(False)

    @torch.no_grad()
    def scale_projection(self, norm: float) -> None:
        """Draw the projection anew so that its rows have about the length `norm`.

        The perceiver ends in a layer norm, so that its rows have length sqrt(P); a matrix of standard deviation s
        makes that s * sqrt(P * D).
        """
        out, width = self.projection.weight.shape
        nn.init.normal_(self.projection.weight, std=norm / (width * out) ** 0.5)
        nn.init.zeros_(self.projection.bias)


def check_frames(config: BridgeConfig, count: int) -> None:
    """Raise ValueError for media of more frames or clips than a bridge has temporal embeddings, if it has any."""
    most = config.temporal_positions
    if 0 < most < count:
        raise ValueError(
            f"{'/'.join(config.modalities)}: {count} frames or clips for {most} temporal embeddings; "
            "sample fewer or raise temporal_positions"
        )


def _check_shareable(config: BridgeConfig, width: int, shared: Bridge) -> None:
    other = unshareable(config.perceiver, shared.config.perceiver)
    here, there = "/".join(config.modalities), "/".join(shared.config.modalities)
    told = f"model.share_perceivers: perceivers of {here} and {there} cannot be shared"
    if other:
        raise ValueError(f"{told}: they differ in {', '.join(other)}")
    if width != shared.encoder_width:
        raise ValueError(
            f"{told}: they look at tokens of width {width} and {shared.encoder_width}; set perceiver.encoder_width to "
            "the same for both"
        )


def _build(config: Any) -> nn.Module:
    """The encoder of a configuration. Raises ValueError for weights that are not its own."""
    try:
        return ENCODERS.build(config)
    except (RuntimeError, KeyError) as error:  # of an encoder from outside: what `load_state_dict` raises
        if getattr(config, "weights", None) is None:
            raise
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"encoder weights '{config.weights}' do not fit {type(config).__name__}: {reason}"
        ) from error
