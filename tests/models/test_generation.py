"""Generation at toy size: stopping row by row, seeds, what is cut off."""

from __future__ import annotations

import pytest
import torch

from chatbridge.models import (
    CausalLM,
    CausalLMConfig,
)
from tests.toy_model import batch, llm, model


class TestGeneration:
    def test_right_padding_is_refused(self):
        with pytest.raises(ValueError, match="padded on the left"):
            model().generate(batch(left=2), 2)

    def test_rows_stop_one_by_one(self):
        m, b = model(), batch()
        free = m.generate(b, 6)
        first = free[0][1]
        asked = []

        def stop(row):
            asked.append(list(row))
            return len(row) == 2 and row[-1] == first

        got = m.generate(b, 6, stop=stop)
        assert got[0] == free[0][:2]
        assert got[1] == (free[1][:2] if free[1][1] == first else free[1])
        assert all(len(row) <= 6 for row in asked)

    def test_rows_stop_without_an_end_token(self):
        m, b = model(language=llm(eos_token_id=None)), batch()
        m.llm.eos_ids = []
        assert [len(row) for row in m.generate(b, 6, stop=lambda row: len(row) == 3)] == [3, 3]

    def test_end_token_is_cut_off(self):
        m, b = model(), batch()
        free = m.generate(b, 6)
        m.llm.eos_ids = [free[0][2]]
        expected = free[0].index(free[0][2])
        assert m.generate(b, 6)[0] == free[0][:expected]

    def test_sampling_follows_the_seed_and_leaves_the_callers_state(self):
        m, b = model(), batch()
        torch.manual_seed(5)
        before = torch.get_rng_state()
        one = m.generate(b, 8, do_sample=True, temperature=3.0, seed=1)
        assert torch.equal(before, torch.get_rng_state())
        assert one == m.generate(b, 8, do_sample=True, temperature=3.0, seed=1)
        assert one != m.generate(b, 8, do_sample=True, temperature=3.0, seed=2)

    def test_in_the_middle_of_training(self):
        """Validation between steps: with recomputed activations too, generation uses its cache and modes return."""
        torch.manual_seed(0)
        plain = model()
        expected = plain.generate(batch(), 5)
        again = CausalLM(CausalLMConfig(path="", gradient_checkpointing=True), plain.llm.model)
        plain.llm = again
        plain.train()
        widths = []
        embedding = again.model.base_model.layers[0].input_layernorm
        embedding.register_forward_hook(lambda _m, _a, out: widths.append(out.shape[1]))
        assert plain.generate(batch(), 5) == expected
        assert widths[1:] == [1] * (len(widths) - 1)
        assert plain.training and plain.bridges["visual"].projector.training
