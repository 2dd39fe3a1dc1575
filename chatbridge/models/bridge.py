"""A bridge: the way of one kind of media into the language model.

    media -> encoder -> norm -> (adapter) -> (temporal embedding) -> projector -> rows

A bridge may serve several modalities: an image is a video of one frame. Shape letters: `chatbridge.common.batch`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbridge.common.batch import RawMedia, finished
from chatbridge.common.registry import ENCODERS, PROJECTORS
from chatbridge.common.schema import key
from chatbridge.contracts import Shape
from chatbridge.models.projectors import QFormerConfig
from chatbridge.models.row_counts import TokenShape, token_grid
from chatbridge.weights import WeightsError


@dataclass(kw_only=True)
class BridgeConfig:
    modalities: list[str] = key(help="names of the media that go over this bridge, for instance [image, video]")
    encoder: Any = key(help="the frozen encoder", registry=ENCODERS)
    projector: Any | None = key(None, help="from its tokens to rows for the language model", registry=PROJECTORS)
    perceiver: QFormerConfig | None = key(
        None, help="in place of projector, as published configurations write it: the keys of qformer"
    )
    norm_trainable: bool = key(False, help="train the layer norm after the encoder")
    adapter: str = key(
        "auto", help="linear layer before the projector: where widths differ, or always", choices=("auto", "always")
    )
    temporal_positions: int = key(
        0, help="learned embeddings of the frame or clip number; 0 for none", low=0, high=1 << 16
    )
    temporal_std: float = key(0.0, help="standard deviation of fresh ones; published: zeros", low=0.0, high=100.0)
    projection_scale: str | None = key(
        None, help="'auto': start with rows as long as the language model's embeddings on average", choices=("auto",)
    )

    def __post_init__(self) -> None:
        if self.projector is not None and self.perceiver is not None:
            raise ValueError("projector and perceiver are both given; the second is the published name, keep the first")
        if self.projector is None and self.perceiver is None:
            self.perceiver = QFormerConfig()

    @property
    def chosen(self) -> Any:
        """The projector's configuration, whichever key it stands under."""
        return self.perceiver if self.projector is None else self.projector


class Fp32LayerNorm(nn.LayerNorm):
    """Layer norm that computes in fp32 and answers in the type it was given; epsilon 1e-5."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class Bridge(nn.Module):
    """Media [N, T, ...] to rows [N, R, D] for the language model.

    Args:
        config: the parts.
        llm_width: D.
        shared: a bridge whose projector this one shares, as far as the projector's class says; None for its own.

    Attributes:
        encoder: frozen, always in eval mode.

    Raises:
        ValueError: when the projectors cannot be shared.
    """

    def __init__(self, config: BridgeConfig, llm_width: int, shared: Bridge | None = None):
        super().__init__()
        self.encoder = _build(config.encoder).requires_grad_(False).eval()
        self.norm = Fp32LayerNorm(self.encoder.width).requires_grad_(config.norm_trainable)
        width = getattr(config.chosen, "encoder_width", None) or self.encoder.width
        self.token_width = width
        if shared is not None:
            _check_shareable(config, width, shared)
        self.config = config
        wanted = config.adapter == "always" or width != self.encoder.width
        self.adapter = nn.Linear(self.encoder.width, width) if wanted else None
        positions = config.temporal_positions
        temporal = config.temporal_std * torch.randn(1, positions, 1, width)
        self.temporal = nn.Parameter(temporal) if positions else None
        sharing = {"shared": shared.projector} if shared is not None else {}
        self.projector = PROJECTORS.build(config.chosen, width, llm_width, **sharing)
        self._frozen = [self.encoder] if config.norm_trainable else [self.encoder, self.norm]

    def rows(self, shape: Shape) -> int:
        """How many rows a medium of shape [T, ...] becomes."""
        return self.projector.rows(self.config.chosen, TokenShape(shape, lambda: self.encoder))

    def forward(self, media_NT: Tensor | RawMedia) -> Tensor:
        media_NT = finished(media_NT)  # workers and the way to the device carry a smaller form
        return self.perceive(self.features(media_NT), token_grid(self.encoder, tuple(media_NT.shape[2:])))

    @torch.no_grad()
    def features(self, media_NT: Tensor) -> Tensor:
        """The frozen part: media [N, T, ...] to encoder tokens [N, T, S, E], all frames in one encoder call."""
        return self.encoder(media_NT.flatten(0, 1)).unflatten(0, media_NT.shape[:2])

    def perceive(self, features_NTSE: Tensor, grid: Tensor | None = None) -> Tensor:
        """The trainable part: encoder tokens [N, T, S, E], and which stands where, to rows [N, R, D].

        Raises:
            ValueError: when media have more frames than there are temporal embeddings.
        """
        # The encoder may run in half precision; trainable weights are fp32 (under autocast this costs nothing).
        x = self.norm(features_NTSE).to(self.norm.weight.dtype)
        if self.adapter is not None:
            x = self.adapter(x)
        if self.temporal is not None:
            check_frames(self.config, x.shape[1])
            x = x + self.temporal[:, : x.shape[1]]
        return self.projector(x, grid)

    def train(self, mode: bool = True) -> Bridge:
        """As usual, but what is frozen stays in eval mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def freeze_perceiver(self) -> None:
        """Leave only temporal embeddings and the projector's last layer trainable. Raises ValueError if it has none."""
        last = self._of_projector("projection", "model.freeze_perceivers")
        self.projector.requires_grad_(False)
        last.requires_grad_(True)
        self._frozen += [part for part in self.projector.children() if part is not last]
        if self.adapter is not None:
            self.adapter.requires_grad_(False)
        self.train(self.training)

    def scale_rows(self, length: float) -> None:
        """Start with rows of about this length. Raises ValueError for a projector that cannot."""
        self._of_projector("scale_rows", "projection_scale")(length)

    def _of_projector(self, member: str, wanted_by: str) -> Any:
        if not hasattr(self.projector, member):
            name = PROJECTORS.name_of(self.config.chosen)
            raise ValueError(
                f"bridge of {'/'.join(self.config.modalities)}: {wanted_by}: projector '{name}' has no {member}; leave "
                f"{wanted_by} out"
            )
        return getattr(self.projector, member)


def check_frames(config: BridgeConfig, count: int) -> None:
    """Raise ValueError for media of more frames or clips than a bridge has temporal embeddings, if it has any."""
    most = config.temporal_positions
    if 0 < most < count:
        raise ValueError(
            f"{'/'.join(config.modalities)}: {count} frames or clips for {most} temporal embeddings; "
            "sample fewer or raise temporal_positions"
        )


def _check_shareable(config: BridgeConfig, width: int, shared: Bridge) -> None:
    mine, theirs = config.chosen, shared.config.chosen
    here, there = "/".join(config.modalities), "/".join(shared.config.modalities)
    refusal = f"model.share_perceivers: perceivers of {here} and {there} cannot be shared"
    name = PROJECTORS.name_of(mine)
    if type(mine) is not type(theirs):
        raise ValueError(
            f"{refusal}: they are '{name}' and '{PROJECTORS.name_of(theirs)}'; take one projector for both"
        )
    free = getattr(PROJECTORS.target_of(mine), "may_differ", None)
    if free is None:
        raise ValueError(f"{refusal}: projector '{name}' has nothing to share; leave share_perceivers out")
    other = [f.name for f in fields(mine) if f.name not in free and getattr(mine, f.name) != getattr(theirs, f.name)]
    if other:
        raise ValueError(f"{refusal}: they differ in {', '.join(other)}")
    if width != shared.token_width:
        raise ValueError(
            f"{refusal}: they look at tokens of width {width} and {shared.token_width}; set encoder_width of their "
            "projectors to the same for both"
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
