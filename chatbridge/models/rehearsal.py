"""Whether media and encoders go together, told from shapes alone: no weight is read, and no medium."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from chatbridge.models.bridge import BridgeConfig, check_frames
from chatbridge.models.tokens import meta_encoder


class NothingTold(ValueError):
    """An encoder that cannot be built, or called, without numbers: nothing can be said of it beforehand."""


@dataclass(frozen=True)
class EncoderStep:
    """What an encoder makes of one frame or clip: S tokens, at the cost of `flops` (forward)."""

    tokens: int
    flops: float


def encoder_step(name: str, bridge: BridgeConfig, source: str, shape: tuple[int, ...]) -> EncoderStep:
    """Send a medium without content through the architecture of a bridge's encoder.

    Args:
        name: the bridge's; source: the key of the processor that gives the media, for messages.
        shape: of a medium, [T, ...].

    Raises:
        ValueError: when the encoder cannot take what the processor gives, or gives what a bridge cannot take.
        NothingTold: when it needs numbers, as parts of a user's own may.
    """
    where = f"model.bridges.{name}.encoder"
    try:
        check_frames(bridge, shape[0])
        encoder, media = meta_encoder(bridge.encoder), torch.empty(1, *shape[1:], device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tokens = encoder(media)
    except Exception as error:  # it may be the user's own code, and PyTorch's checks raise many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        told = f"{where} cannot take what {source} gives, {list(shape[1:])} a frame or clip: {reason}"
        raise (NothingTold if needs_numbers(error) else ValueError)(told) from error
    if tokens.dim() != 3 or tokens.shape[0] != 1 or tokens.shape[1] < 1 or tokens.shape[2] != encoder.width:
        raise ValueError(
            f"{where} makes {list(tokens.shape)} of what {source} gives, {list(shape[1:])} a frame or clip; a bridge "
            f"takes [1, tokens, {encoder.width}], one token at least and its width last"
        )
    return EncoderStep(tokens.shape[1], float(counter.get_total_flops()))


def needs_numbers(error: Exception) -> bool:
    """Whether something failed only because tensors on the meta device hold none."""
    return isinstance(error, NotImplementedError) or "meta tensor" in str(error).lower()
