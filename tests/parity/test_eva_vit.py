"""The vision encoder against the original's, by original names."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from chatbridge.models.encoders.eva_vit import EvaVit, EvaVitConfig, interpolate_pos_embed


def build(config: dict) -> EvaVit:
    return EvaVit(
        EvaVitConfig(
            image_size=config["img"],
            patch_size=config["patch_size"],
            width=config["dim"],
            depth=config["depth"],
            heads=config["heads"],
            mlp_ratio=config["mlp_ratio"],
        )
    )


@pytest.mark.golden("eva_vit_[0-9]*")
def test_features(case):
    model = build(case.info["config"]).eval()
    model.load_state_dict(case.weights, strict=True)
    seen = []
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        features = model(case.inputs["image"])
    assert_close(seen[0], case.outputs["after_block_0"], atol=2e-4, rtol=1e-4)
    assert_close(features, case.outputs["features"], atol=2e-4, rtol=1e-4)
    assert model.blocks[0].mlp.fc1.out_features == case.info["config"]["mlp_hidden"]


@pytest.mark.golden("eva_vit_pos_interp*")
def test_positions_on_another_grid(case):
    config = case.info["config"]
    got = interpolate_pos_embed(case.inputs["pos_embed"], (config["to_grid"], config["to_grid"]))
    assert_close(got, case.outputs["pos_embed"], atol=1e-5, rtol=0)

    width = got.shape[-1]
    model = EvaVit(EvaVitConfig(image_size=config["img"], patch_size=config["patch"], width=width, depth=1, heads=4))
    state = model.state_dict() | {"pos_embed": case.inputs["pos_embed"]}
    model.load_state_dict(state, strict=True)
    assert_close(model.pos_embed.detach(), case.outputs["pos_embed"], atol=1e-5, rtol=0)


@pytest.mark.golden("eva_vit_fp16_dtypes*")
def test_which_parameters_are_half(case):
    expected = case.info["dtypes"]
    depth = 1 + max(int(name.split(".")[1]) for name in expected if name.startswith("blocks."))
    config = EvaVitConfig(image_size=28, width=32, depth=depth, heads=2, dtype="float16")
    model = EvaVit(config).eval()
    assert {k: str(v.dtype).removeprefix("torch.") for k, v in model.state_dict().items()} == expected
    with torch.no_grad():
        assert model(torch.randn(1, 3, 28, 28)).isfinite().all()
