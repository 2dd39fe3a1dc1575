"""Frozen encoders: one picture, frame or clip in, a row of tokens out (`chatbridge.contracts.Encoder`)."""

from chatbridge.models.encoders.beats import Beats, BeatsConfig
from chatbridge.models.encoders.eva_vit import EvaVit, EvaVitConfig

__all__ = ["Beats", "BeatsConfig", "EvaVit", "EvaVitConfig"]
