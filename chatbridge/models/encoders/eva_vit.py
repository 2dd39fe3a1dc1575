"""EVA-ViT, the vision encoder (EVA, arXiv 2211.07636; the giant CLIP model of EVA-CLIP, arXiv 2303.15389).

The blocks are timm's. ChatBridge takes the tokens of the block before the last one, CLS included, without a final
norm: 39 of the giant model's 40 blocks. Tensors are named as in the published files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from torch import Tensor, nn

from chatbridge.common.registry import ENCODERS
from chatbridge.common.schema import key
from chatbridge.contracts import Shape
from chatbridge.weights import DTYPES, empty_weights, load_encoder, on_meta
from chatbridge.weights.coverage import NameMapping, allowed
from chatbridge.weights.formats import VISION, WeightFormat

PREFIXES = {"visual.trunk.": " (open_clip)", "visual.": " (EVA-CLIP)", "": ""}
"""Of tensors in the files of open_clip, of EVA-CLIP, and in others (eva_vit_g.pth, timm)."""

IGNORED = (r"(norm|fc_norm|head)\..*",)
"""What follows the blocks in a classifier or in CLIP."""

CLIP_IGNORED = (
    r"(text|transformer|token_embedding|ln_final)\..*",
    r"positional_embedding|text_projection|logit_scale|logit_bias",
)
"""CLIP's text side, beside a vision tower that has a prefix."""


@dataclass(kw_only=True)
class EvaVitConfig:
    """Defaults: EVA-ViT-G as BLIP-2 and ChatBridge use it."""

    image_size: int = key(224, help="side of the square input", unit="pixels", low=1, high=4096)
    patch_size: int = key(14, help="side of a patch", unit="pixels", low=1, high=4096)
    width: int = key(1408, help="width of a token", low=1, high=1 << 16)
    depth: int = key(39, help="transformer blocks", low=1, high=512)
    heads: int = key(16, help="attention heads", low=1, high=1024)
    mlp_ratio: float = key(4.3637, help="MLP width over token width (rounded down)", low=0.01, high=64.0)
    drop_path: float = key(0.0, help="stochastic depth of the last block, for pre-training", low=0.0, high=1.0)
    weights: str | None = key(None, help="weight file (eva_vit_g.pth, a timm or EVA-CLIP file)", path=True)
    dtype: str = key("float32", help="precision of the convolution and matrices", choices=tuple(DTYPES))

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose one that is")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")


@ENCODERS.register("eva_vit", config=EvaVitConfig)
class EvaVit(Eva):
    """Pictures to tokens: CLS, then the patches row by row.

    Attributes:
        width: E, the width of a token.
    """

    file_format = WeightFormat(
        "EVA-ViT vision encoder",
        VISION,
        "encoder.weights of the bridge of images",
        recognises=lambda names: any(f"{prefix}blocks.0.attn.qkv.weight" in names for prefix in PREFIXES),
    )

    def __init__(self, config: EvaVitConfig):
        with empty_weights(config.weights is not None):
            super().__init__(
                img_size=config.image_size,
                patch_size=config.patch_size,
                embed_dim=config.width,
                depth=config.depth,
                num_heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                drop_path_rate=config.drop_path,
                num_classes=0,
                global_pool="token",
                use_post_transformer_norm=False,
            )
        self.config = config
        self.width = config.width
        self.dtype = DTYPES[config.dtype]
        self.register_load_state_dict_pre_hook(lambda module, state, prefix, *_: module.fit_state(state, prefix))
        if self.dtype != torch.float32:
            halve_matrices(self, self.dtype)
        if config.weights is not None and not on_meta():
            load_encoder(self, config.weights)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pictures [M, 3, H, W] to tokens [M, S, E], those of the last block.

        Raises:
            ValueError: for pictures of another size than the configuration says.
        """
        side = self.config.image_size
        if pixels.shape[2:] != (side, side):
            raise ValueError(f"image_size is {side}, the pictures have {pixels.shape[3]} x {pixels.shape[2]} pixels")
        # Norms, biases and embeddings stay fp32 beside half matrices, so the types meet under autocast only.
        half = self.dtype != torch.float32
        with torch.autocast(pixels.device.type, dtype=self.dtype) if half else nullcontext():
            return self.forward_features(pixels)

    def token_count(self, shape: Shape) -> int:
        return self.pos_embed.shape[1]

    def token_grid(self, shape: Shape) -> Tensor:
        rows, columns = self.patch_embed.grid_size
        return torch.arange(1, 1 + rows * columns).unflatten(0, (rows, columns))

    def read_names(self, mapping: NameMapping, names: Collection[str], extras: Mapping[str, Any]) -> None:
        """Blocks from `depth` on, the final norm and the head are not used."""
        prefix = next(p for p in PREFIXES if not p or any(name.startswith(f"{p}blocks.") for name in names))
        mapping.kind += PREFIXES[prefix]
        depth, blocks = self.config.depth, 0
        for name in names:
            inner = name.removeprefix(prefix)
            if not name.startswith(prefix):
                pattern = allowed(name, CLIP_IGNORED)
            else:
                block = re.match(r"blocks\.(\d+)\.", inner)
                index = int(block.group(1)) if block else -1
                blocks = max(blocks, index + 1)
                pattern = f"blocks.{depth}... of a deeper file" if index >= depth else allowed(inner, IGNORED)
            if pattern:
                mapping.ignored[name] = pattern
            else:
                mapping.names[name] = inner
        if blocks < depth:
            mapping.problems.append(
                f"the vision weights hold {blocks} blocks and depth is {depth}; lower depth or take others"
            )

    def fit_state(self, state: dict[str, Tensor], prefix: str = "") -> None:
        """Before loading: a state dict made for another image size is brought to this one's grid, in place."""
        given = state.get(prefix + "pos_embed")
        if given is not None:
            state[prefix + "pos_embed"] = self.resample(given)

    @property
    def resamplers(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """What brings a file's tensor to the shape of this module's, by name."""
        return {"pos_embed": self.resample}

    def resample(self, pos_embed: Tensor) -> Tensor:
        """Position embeddings of another image size, on this one's grid."""
        if pos_embed.dim() != 3 or pos_embed.shape[1] == self.pos_embed.shape[1]:
            return pos_embed
        return interpolate_pos_embed(pos_embed, self.patch_embed.grid_size)


def interpolate_pos_embed(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings of a square grid, resampled (bicubic) to another grid of patches.

    Args:
        pos_embed: [1, 1 + n * n, E], CLS first.
        grid: rows and columns wanted.

    Returns:
        [1, 1 + rows * columns, E] with the position of CLS unchanged.

    Raises:
        ValueError: when the given positions are not those of a square grid.
    """
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise ValueError(f"pos_embed holds {patches.shape[1]} patch positions, which is not a square grid")
    image = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, image.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1)


def halve_matrices(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert weights and biases of convolutions and linear layers; norms, q/v biases, CLS, positions stay."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            module.to(dtype)
