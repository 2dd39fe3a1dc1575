"""Projectors: normalised encoder tokens to rows of the language model's width (`chatbridge.contracts.Projector`)."""

from chatbridge.models.projectors.mlp import MlpConfig, MlpProjector
from chatbridge.models.projectors.qformer import QFormer, QFormerConfig, QFormerProjector
from chatbridge.models.projectors.resampler import ResamplerConfig, ResamplerProjector

__all__ = [
    "MlpConfig",
    "MlpProjector",
    "QFormer",
    "QFormerConfig",
    "QFormerProjector",
    "ResamplerConfig",
    "ResamplerProjector",
]
