"""The audio encoder against the original's, by original names."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from chatbridge.models.encoders.beats import TABLE, Beats, BeatsConfig, relative_buckets


def build(case) -> Beats:
    model = Beats(BeatsConfig.from_published(case.info["config"])).eval()
    model.load_state_dict(case.weights, strict=True)
    return model


@pytest.mark.golden("beats_*")
def test_features(case):
    model, fbank = build(case), case.inputs["fbank"]
    with torch.no_grad():
        features = model(fbank)
        grid = model.patch_embedding(fbank.unsqueeze(1))
    assert_close(features, case.outputs["features"], atol=1e-4, rtol=0)
    assert list(grid.shape) == case.outputs["patch_grid_shape"].tolist()


@pytest.mark.golden("beats_*")
def test_buckets(case):
    config = BeatsConfig.from_published(case.info["config"])
    key = torch.arange(case.outputs["features"].shape[1])
    first = relative_buckets(key, config.num_buckets, config.max_distance)
    last = relative_buckets(key - key[-1], config.num_buckets, config.max_distance)
    assert torch.equal(first, case.outputs["rel_bucket_first_row"])
    assert torch.equal(last, case.outputs["rel_bucket_last_row"])


@pytest.mark.golden("beats_*")
def test_both_weight_norm_namings_load(case):
    weights = case.weights
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        weights[f"encoder.pos_conv.0.parametrizations.weight.{new}"] = weights.pop(f"encoder.pos_conv.0.{old}")
    model = Beats(BeatsConfig.from_published(case.info["config"]))
    model.load_state_dict(weights, strict=True)
    assert torch.equal(model.encoder.pos_conv[0].weight_v, case.weights["encoder.pos_conv.0.weight_v"])


@pytest.mark.golden("beats_*")
def test_differing_copies_of_the_shared_table_are_refused(case):
    weights = case.weights
    weights[f"encoder.layers.1.{TABLE}"] = weights[f"encoder.layers.1.{TABLE}"] + 1
    with pytest.raises(ValueError, match="layers 0 and 1 .* share one table"):
        Beats(BeatsConfig.from_published(case.info["config"])).load_state_dict(weights)
