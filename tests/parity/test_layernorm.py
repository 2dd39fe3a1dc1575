"""The layer norm between encoder and perceiver: computed in fp32, answered in the type it was given."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from chatbridge.models.bridge import Fp32LayerNorm


@pytest.mark.golden("ln_vision*", "ln_audio*")
def test_fp32_and_fp16(case):
    norm = Fp32LayerNorm(case.info["config"]["dim"])
    assert norm.eps == case.info["config"]["eps"]
    norm.load_state_dict(case.weights)
    for name, x in case.inputs.items():
        kind = name.removeprefix("x_")
        expected = case.outputs[f"y_{kind}"]
        with torch.no_grad():
            got = norm(x)
        assert got.dtype == expected.dtype == x.dtype
        if kind == "fp16":
            # Both are roundings of nearly the same fp32 number: equal, or neighbours where it lies between two.
            step = expected.abs().float().clamp_min(2**-14).log2().floor().exp2() * 2**-10
            assert ((got.float() - expected.float()).abs() <= step).all()
            assert (got == expected).float().mean() > 0.99
        else:
            assert_close(got, expected, atol=1e-5, rtol=0)
