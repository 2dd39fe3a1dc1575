"""BEATs, the audio encoder (BEATs: Audio Pre-Training with Acoustic Tokenizers, arXiv 2212.09058).

Spectrogram patches -> convolutional position embedding -> post-norm transformer with deep-norm residuals
(DeepNet, arXiv 2203.00555) and gated relative position bias (WavLM, arXiv 2110.13900, section 3.1). No padding mask:
ChatBridge lets zero padding be attended.

Tensors are named as in the published files. The bucket table that all layers share is written once, under layer 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbridge.common.registry import ENCODERS
from chatbridge.common.schema import key
from chatbridge.contracts import Shape
from chatbridge.weights import DTYPES, empty_weights, load_encoder, on_meta
from chatbridge.weights.coverage import NameMapping, allowed
from chatbridge.weights.formats import AUDIO, WeightFormat

TABLE = "self_attn.relative_attention_bias.weight"
"""The table of relative positions: one tensor, which published files repeat in every layer."""

IGNORED = (r"predictor\..*",)
"""The classifier of fine-tuned files."""

SETTINGS = {
    "patch_size": "input_patch_size", "patch_width": "embed_dim", "width": "encoder_embed_dim",
    "depth": "encoder_layers", "heads": "encoder_attention_heads", "ffn_width": "encoder_ffn_embed_dim",
    "conv_pos": "conv_pos", "conv_pos_groups": "conv_pos_groups", "num_buckets": "num_buckets",
    "max_distance": "max_distance", "deep_norm": "deep_norm",
}  # fmt: skip
"""Our configuration keys, and what the ``cfg`` of published files calls them."""

NEEDED = {
    "layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True, "conv_bias": False,
    "activation_fn": "gelu",
}  # fmt: skip
"""The variant of BEATs that ChatBridge uses."""


@dataclass(kw_only=True)
class BeatsConfig:
    """Defaults: BEATs_iter3_plus_AS2M, the self-supervised model."""

    patch_size: int = key(16, help="side of a square patch", unit="frames and mel bins", low=1, high=1024)
    patch_width: int = key(
        512, help="width of a patch before it is projected to the encoder's width", low=1, high=1 << 16
    )
    width: int = key(768, help="width of a token", low=1, high=1 << 16)
    depth: int = key(12, help="transformer layers", low=1, high=512)
    heads: int = key(12, help="attention heads", low=1, high=1024)
    ffn_width: int = key(3072, help="width of the feed-forward layers", low=1, high=1 << 18)
    conv_pos: int = key(128, help="kernel of the position convolution", unit="tokens", low=1, high=4096)
    conv_pos_groups: int = key(16, help="groups of the position convolution", low=1)
    num_buckets: int = key(320, help="buckets of relative distance", low=4, high=1 << 16)
    max_distance: int = key(800, help="distance from which on all share a bucket", unit="tokens", low=1, high=1 << 20)
    deep_norm: bool = key(True, help="scale residuals by (2 * depth) ** 0.25")
    dropout: float = key(0.0, help="dropout after attention and feed-forward, for pre-training", low=0.0, high=1.0)
    weights: str | None = key(None, help="weight file (BEATs_iter3_plus_AS2M.pt)", path=True)
    dtype: str = key("float32", help="precision of the weights", choices=tuple(DTYPES))

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose one that is")
        if self.width % self.conv_pos_groups:
            raise ValueError(f"width {self.width} is not a multiple of conv_pos_groups {self.conv_pos_groups}")
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                f"max_distance {self.max_distance} must be above a quarter of num_buckets {self.num_buckets}, the "
                "distances that have a bucket each"
            )

    @classmethod
    def from_published(cls, cfg: dict[str, Any]) -> BeatsConfig:
        """The configuration that the ``cfg`` of a published file stands for.

        Raises:
            ValueError: when the file's architecture is one that ChatBridge does not use (pre-norm, no gate, ...).
        """
        return cls(**settings_of(cfg))


@ENCODERS.register("beats", config=BeatsConfig)
class Beats(nn.Module):
    """Filter banks to tokens.

    Attributes:
        width: E, the width of a token.
    """

    file_format = WeightFormat(
        "BEATs audio encoder",
        AUDIO,
        "encoder.weights of the bridge of audio",
        recognises=lambda names: any(re.fullmatch(r"encoder\.layers\.\d+\.self_attn\.grep_a", name) for name in names),
    )

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        self.width = config.width
        self.dtype = DTYPES[config.dtype]
        with empty_weights(config.weights is not None):
            self._build(config)
        self.register_load_state_dict_pre_hook(lambda module, state, prefix, *_: mend(state, prefix))
        self.to(self.dtype)
        if config.weights is not None and not on_meta():
            load_encoder(self, config.weights)

    def _build(self, config: BeatsConfig) -> None:
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(1, config.patch_width, kernel_size=patch, stride=patch, bias=False)
        self.layer_norm = nn.LayerNorm(config.patch_width)
        self.post_extract_proj = (
            nn.Linear(config.patch_width, config.width) if config.patch_width != config.width else None
        )
        self.encoder = BeatsTransformer(config)

    def forward(self, fbank: Tensor) -> Tensor:
        """Normalised filter banks [M, frames, mel bins] to tokens [M, S, E].

        S = (frames // patch) * (bins // patch), one time step after the other, low bins first.
        """
        patches = self.patch_embedding(fbank.to(self.dtype).unsqueeze(1))
        x = self.layer_norm(patches.flatten(2).transpose(1, 2))
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        return self.encoder(x)

    def token_count(self, shape: Shape) -> int:
        return self.token_grid(shape).numel()

    def token_grid(self, shape: Shape) -> Tensor:
        """Rows go up in pitch, columns forth in time."""
        steps, bands = (size // self.config.patch_size for size in shape)
        return torch.arange(steps * bands).unflatten(0, (steps, bands)).T

    def read_names(self, mapping: NameMapping, names: Collection[str], extras: Mapping[str, Any]) -> None:
        """The repeated table once, weight norm under its old names, no classifier; ``cfg`` is compared."""
        read_names(mapping, names)
        mapping.kind += ", fine-tuned" if mapping.ignored else ""
        cfg = extras.get("cfg")
        if not isinstance(cfg, Mapping):
            return
        # What is no plain value equals none of ours.
        cfg = {k: v if isinstance(v, (bool, int, float, str)) else type(v).__name__ for k, v in cfg.items()}
        ours = {k: getattr(self.config, k) for k in SETTINGS}
        differences = [f"{k} is {v} there and {ours[k]} here" for k, v in settings_of(cfg).items() if v != ours[k]]
        if differences:
            mapping.problems.append(f"another architecture by its cfg: {', '.join(differences)}")

    def copies(self) -> dict[str, str]:
        layers = range(1, self.config.depth)
        return {f"encoder.layers.{layer}.{TABLE}": f"encoder.layers.0.{TABLE}" for layer in layers}


def read_names(mapping: NameMapping, names: Iterable[str]) -> None:
    """Enter what the tensors of a published file are called here."""
    for name in names:
        pattern = allowed(name, IGNORED)
        table = re.fullmatch(rf"encoder\.layers\.(\d+)\.{re.escape(TABLE)}", name)
        if pattern:
            mapping.ignored[name] = pattern
        elif table and table.group(1) != "0":
            mapping.copies[name] = f"encoder.layers.0.{TABLE}"
        else:
            mapping.names[name] = old_weight_norm(name)


def old_weight_norm(name: str) -> str:
    """PyTorch's parametrised weight norm, under the names that BEATs was saved with."""
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = name.replace(f"pos_conv.0.parametrizations.weight.{new}", f"pos_conv.0.{old}")
    return name


def mend(state: dict[str, Tensor], prefix: str = "") -> None:
    """The same for a state dict in memory, in place, before a module loads it.

    Raises:
        ValueError: when the copies of the table differ.
    """
    mapping = NameMapping("", "")
    read_names(mapping, [name.removeprefix(prefix) for name in state if name.startswith(prefix)])
    for name, target in mapping.names.items():
        if name != target:
            state[prefix + target] = state.pop(prefix + name)
    for name, own in mapping.copies.items():
        copy = state.pop(prefix + name)
        if prefix + own in state and not torch.equal(copy, state[prefix + own]):
            layer = name.split(".")[2]
            raise ValueError(
                f"layers 0 and {layer} of the audio weights differ in {TABLE}; in BEATs all share one table"
            )


def settings_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Our configuration keys from the ``cfg`` of a published file.

    Raises:
        ValueError: when the architecture is one that ChatBridge does not use (pre-norm, no gate, ...).
    """
    for name, value in NEEDED.items():
        if cfg.get(name, value) != value:
            raise ValueError(f"audio weights with {name}={cfg[name]!r} are not supported, only {value!r}")
    return {ours: cfg[theirs] for ours, theirs in SETTINGS.items() if theirs in cfg}


class BeatsTransformer(nn.Module):
    """Position convolution, norm, layers; no norm at the end."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.pos_conv = nn.ModuleList([PositionConv(config.width, config.conv_pos, config.conv_pos_groups)])
        self.layer_norm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList([BeatsLayer(config, owns_table=i == 0) for i in range(config.depth)])
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.layer_norm(x + self.pos_conv[0](x)))
        bias = self.layers[0].self_attn.position_bias(x.shape[1])
        for layer in self.layers:
            x = layer(x, bias)
        return x


class PositionConv(nn.Module):
    """Grouped convolution over time whose kernel is normalised per tap (weight norm over the kernel axis), GELU."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight_v = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight_v, std=math.sqrt(4 / (kernel * width)))
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(0, 1), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight_v.shape[-1]
        weight = torch._weight_norm(self.weight_v, self.weight_g, 2)
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=kernel // 2, groups=self.groups)
        # An even kernel padded on both sides gives one step too many: the last one goes.
        return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)


class BeatsLayer(nn.Module):
    """Self-attention and feed-forward, each followed by its norm; residuals scaled up (deep norm)."""

    def __init__(self, config: BeatsConfig, owns_table: bool):
        super().__init__()
        self.residual = (2 * config.depth) ** 0.25 if config.deep_norm else 1.0
        self.self_attn = BeatsAttention(config, owns_table)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        gain = (8 * config.depth) ** -0.25 if config.deep_norm else 1.0  # DeepNet, section 4.1
        for linear in (self.self_attn.v_proj, self.self_attn.out_proj, self.fc1, self.fc2):
            nn.init.xavier_normal_(linear.weight, gain=gain)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x * self.residual + self.dropout(self.self_attn(x, bias)))
        return self.final_layer_norm(x * self.residual + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class BeatsAttention(nn.Module):
    """Self-attention whose relative position bias is gated by the query (WavLM, eq. 4-6)."""

    def __init__(self, config: BeatsConfig, owns_table: bool):
        super().__init__()
        self.heads = config.heads
        self.num_buckets, self.max_distance = config.num_buckets, config.max_distance
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        self.grep_linear = nn.Linear(config.width // config.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, config.heads, 1, 1))
        if owns_table:
            self.relative_attention_bias = nn.Embedding(config.num_buckets, config.heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=0.02)

    def position_bias(self, length: int) -> Tensor:
        """[1, heads, S, S] from the table; only the layer that owns it has this."""
        table = self.relative_attention_bias
        position = torch.arange(length, device=table.weight.device)
        buckets = relative_buckets(position[None, :] - position[:, None], self.num_buckets, self.max_distance)
        return table(buckets).permute(2, 0, 1).unsqueeze(0)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        # The 8 gate channels are two groups of 4, summed, as in the published weights.
        update, reset = torch.sigmoid(self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        gate = update * (reset * self.grep_a - 1.0) + 2.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(gate * bias).to(q.dtype))
        return self.out_proj(y.transpose(1, 2).flatten(2))


def relative_buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each relative distance, key minus query (T5, arXiv 1910.10683, bidirectional).

    Half of the buckets serve either sign; of these, half are single distances and half grow logarithmically up to
    `max_distance`, beyond which everything shares the last one.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distance.abs()
    log = torch.log(size.float().clamp_min(1) / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + log.to(torch.long)).clamp_max(half - 1)
    return (distance > 0).long() * half + torch.where(size < exact, size, far)
