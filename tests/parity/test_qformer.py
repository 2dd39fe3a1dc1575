"""The Q-Former against the original's, by original names."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from chatbridge.models.projectors.qformer import QFormer


@pytest.mark.golden("qformer_*")
def test_query_output(case):
    config = case.info["config"]
    model = QFormer(
        width=config["hidden"],
        layers=config["layers"],
        heads=config["heads"],
        intermediate=config["inter"],
        encoder_width=config["enc_w"],
        cross_attention_every=config["cross_attention_freq"],
        dropout=config["dropout"],
    ).eval()
    weights = case.weights
    weights.pop("bert.embeddings.position_ids")  # a counter of the text side
    model.load_state_dict(weights, strict=True)
    cross = [i for i, layer in enumerate(model.bert["encoder"]["layer"]) if layer.crossattention is not None]
    assert cross == config["cross_layers"]

    inputs, outputs = case.inputs, case.outputs
    tokens = inputs["encoder_hidden_states"]
    queries = inputs["query_tokens"].expand(len(tokens), -1, -1)
    with torch.no_grad():
        for name, expected in outputs.items():
            kind = name.removeprefix("last_hidden_state_")
            got = model(queries, tokens, None if kind == "nomask" else inputs[f"mask_{kind}"])
            assert_close(got, expected, atol=1e-4, rtol=0, msg=lambda text, kind=kind: f"{kind}: {text}")


def test_a_row_with_nothing_to_look_at_stays_finite():
    model = QFormer(width=16, layers=2, heads=2, intermediate=16, encoder_width=8).eval()
    tokens = torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    assert model(torch.randn(2, 3, 16), tokens, mask).isfinite().all()
