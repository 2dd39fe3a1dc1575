"""What the projector looks at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chatbridge.models.attention import AttentionMaps, captured, cross_attention
from chatbridge.models.projectors.qformer import QFormerAttention
from tests.inference.tools import make_engine, write_media
from tests.toy_model import Q, model


@pytest.mark.parametrize(
    ("modality", "shape", "tokens", "grid"),
    [
        ("image", (2, 1, 3, 28, 28), 5, (2, 2)),
        ("video", (1, 2, 3, 28, 28), 5, (2, 2)),
        ("audio", (3, 2, 32, 64), 8, (4, 2)),
    ],
)
def test_shapes_and_sums(modality, shape, tokens, grid):
    bridge, media_NT = model().bridge_of(modality), torch.randn(shape)
    maps = cross_attention(bridge, media_NT)
    assert maps.layers == (0,)  # of two layers, every second one looks out
    assert maps.weights_CNHQTS.shape == (1, shape[0], 2, Q, shape[1], tokens)
    torch.testing.assert_close(maps.weights_CNHQTS.sum((-1, -2)), torch.ones(1, shape[0], 2, Q))
    assert tuple(maps.grid.shape) == grid
    assert maps.on_grid().shape == (1, shape[0], 2, Q, shape[1], *grid)
    assert not [m for m in bridge.modules() if m._forward_pre_hooks]


def test_the_probabilities_are_those_that_the_layer_uses():
    """With them, the layer's own output comes out again."""
    torch.manual_seed(0)
    layer = QFormerAttention(8, 12, 2, 0.0).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, tokens = torch.randn(2, 3, 8), torch.randn(2, 7, 12)
    bias = torch.zeros(2, 1, 1, 7)
    bias[0, ..., 4:] = torch.finfo(torch.float32).min
    for given in (None, bias):
        with captured([layer]) as maps:
            expected = layer(x, tokens, given)
        values = layer.self["value"](tokens).unflatten(-1, (2, 4)).transpose(1, 2)
        mixed = (maps[0] @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.output(mixed, x), expected)
    assert float(maps[0][0, ..., 4:].detach().abs().max()) == 0


@pytest.mark.parametrize(
    ("modality", "shape", "patch", "place"),
    [
        ("image", (1, 1, 3, 28, 28), (..., slice(0, 14), slice(14, 28)), (0, 1)),  # above, right
        ("audio", (1, 1, 32, 64), (..., slice(16, 32), slice(32, 48)), (2, 1)),  # third band of pitches, second time
    ],
)
def test_a_place_on_the_grid_is_that_place_of_the_medium(modality, shape, patch, place):
    bridge = model().bridge_of(modality)
    # Without its layers, an encoder's tokens are its patches, which know nothing of each other.
    if modality == "image":
        bridge.encoder.blocks = nn.ModuleList()
    else:
        bridge.encoder.encoder = nn.Identity()
    plain, marked = torch.zeros(shape), torch.zeros(shape)
    marked[patch] = 3.0
    maps = [cross_attention(bridge, media).on_grid() for media in (plain, marked)]
    change = (maps[1] - maps[0]).abs().mean((0, 1, 2, 3, 4))
    assert divmod(int(change.argmax()), change.shape[1]) == place, change


def test_unknown_encoders_have_no_grid():
    maps = AttentionMaps(torch.ones(1, 1, 1, 1, 1, 4), (0,))
    with pytest.raises(ValueError, match="no known grid"):
        maps.on_grid()


def test_through_the_engine(tmp_path):
    engine, files = make_engine(tmp_path), write_media(tmp_path / "files")
    for name, frames in (("a.png", 1), ("still.mp4", 4), ("a.wav", 1)):
        maps = engine.attention(files[name])
        assert maps.weights_CNHQTS.shape[4] == frames
        assert maps.on_grid().isfinite().all()
