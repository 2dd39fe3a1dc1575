"""Language models of many families: numbers right beside neighbours, padding and windows, or refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from chatbridge.models import CausalLM, CausalLMConfig
from chatbridge.models.language_model_checks import FAULTS, GENERATING, PACKING, READING, STREAMING
from tests import toy_model

SIZE = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 24, "initializer_range": 0.4, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
WINDOW = 4
LAYERS = ["sliding_attention", "full_attention"]
WINDOWED = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": LAYERS},
    "phi3": {"sliding_window": WINDOW},
    "starcoder2": {"sliding_window": WINDOW},
    "cohere2": {"sliding_window": WINDOW, "layer_types": LAYERS, "logit_scale": 0.3},
    "gpt_oss": {"sliding_window": WINDOW, "num_local_experts": 4},
    "llama4_text": {"attention_chunk_size": WINDOW, "num_local_experts": 2},
    "falcon": {"head_dim": None, "num_key_value_heads": None},  # rotary, but tells its masks nothing of positions
}
SCALED = {
    "cohere": {"logit_scale": 0.2},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "gemma2": {"final_logit_softcapping": 2.0},
    "recurrent_gemma": {"lru_width": 16, "logits_soft_cap": 1.0, "attention_window_size": 8},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 8, "do_layer_norm_before": False, "head_dim": None},
    "llama": {},
}
LENGTH = 12


def build(family, **changes):
    torch.manual_seed(0)
    settings = {name: value for name, value in (SIZE | changes).items() if value is not None}
    return CausalLM.from_config(AutoConfig.for_model(family, **settings))


def texts(language):
    """Two texts: embeddings, positions, and the logits of the model's plain forward pass over each alone."""
    ids_BL = torch.randint(3, 60, (2, LENGTH))
    with torch.no_grad():
        plain = [language.model(input_ids=ids_1L[None], use_cache=False).logits[0].float() for ids_1L in ids_BL]
    return ids_BL, torch.arange(LENGTH).expand(2, LENGTH), torch.cat(plain)


@pytest.mark.parametrize("family", WINDOWED)
def test_under_windows_neighbours_padding_and_pieces_change_nothing(family):
    language = build(family, **WINDOWED[family])
    ids_BL, positions_BL, plain_KV = texts(language)
    embeds_BLD, everywhere_BL = language.embed(ids_BL), torch.ones_like(ids_BL)

    def close(logits_KV, wanted_KV=plain_KV):
        torch.testing.assert_close(logits_KV, wanted_KV, atol=2e-5, rtol=1e-4)

    samples_BL = torch.tensor([[0] * LENGTH + [1] * LENGTH + [-1] * 5])
    padding = torch.zeros(1, 5, embeds_BLD.shape[2])
    row_BLD = torch.cat([embeds_BLD.reshape(1, 2 * LENGTH, -1), padding], 1)
    row_positions_BL = torch.cat([positions_BL.reshape(1, -1), torch.zeros(1, 5, dtype=torch.long)], 1)
    close(language.logits_at(row_BLD, language.block_mask(samples_BL), row_positions_BL, samples_BL >= 0))
    for side in ((3, 0), (0, 3)):
        mask_BL = torch.nn.functional.pad(everywhere_BL, side)
        padded_BLD = torch.nn.functional.pad(embeds_BLD, (0, 0, *side))
        counted_BL = (mask_BL.cumsum(1) - 1).clamp_min(0)
        close(language.logits_at(padded_BLD, mask_BL, counted_BL, mask_BL.bool()))
    cache, ends = language.new_cache(), (5, 6, 10, 11, LENGTH)
    pieces = [language.step(cache, embeds_BLD=embeds_BLD[:1, a:b]) for a, b in zip((0, *ends), ends, strict=False)]
    close(torch.cat(pieces), plain_KV[[end - 1 for end in ends]])


@pytest.mark.parametrize("family", SCALED)
def test_logits_of_chosen_positions_are_those_of_the_whole_forward(family):
    language = build(family, **SCALED[family])
    ids_BL, positions_BL, plain_KV = texts(language)
    keep_BL = torch.rand(2, LENGTH) < 0.4
    logits_KV = language.logits_at(language.embed(ids_BL), torch.ones_like(ids_BL), positions_BL, keep_BL)
    torch.testing.assert_close(logits_KV, plain_KV[keep_BL.flatten()], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes", "use"),
    [
        ("recurrent_gemma", SCALED["recurrent_gemma"], PACKING),  # its state runs on into the next sample
        ("bloom", {"n_layer": 2, "n_head": 2}, PACKING),
        ("mamba2", {"state_size": 8, "num_heads": 4, "n_groups": 1, "expand": 2}, STREAMING),  # no cache of this kind
        ("rwkv", {"attention_hidden_size": 16}, GENERATING),  # reads its padding
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(family, changes, use):
    language = build(family, **changes)
    with pytest.raises(ValueError, match=f"language model '' .{family}, attention .*{FAULTS[use][:40]}"):
        language.require(use)


def test_a_model_that_looks_ahead_is_refused_as_it_is_loaded():
    with pytest.raises(ValueError, match=f"language model '' .bert, attention sdpa.: {FAULTS[READING]}"):
        build("bert")


def test_embeddings_that_are_not_what_the_model_reads_are_refused_as_it_is_loaded(monkeypatch):
    model = toy_model.llm().model
    plain = model.forward

    def scaled(input_ids=None, inputs_embeds=None, **rest):
        embeds = model.get_input_embeddings()(input_ids) * 2 if inputs_embeds is None else inputs_embeds
        return plain(inputs_embeds=embeds, **rest)

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(ValueError, match="given embeddings in place of ids"):
        CausalLM(CausalLMConfig(path=""), model)


def test_half_precision_and_odd_weights_are_not_taken_for_faults():
    for dtype in ("float16", "bfloat16"):
        toy_model.llm(dtype).require(*FAULTS)
    broken = toy_model.llm()
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("nan"))
    broken.require(*FAULTS)
    with torch.device("meta"):
        toy_model.llm().require(*FAULTS)


def test_the_trial_is_held_once_and_draws_no_random_numbers():
    language, calls = toy_model.llm(), []
    language.model.register_forward_hook(lambda *_: calls.append(1))
    state = torch.random.get_rng_state()
    language.require(READING, PACKING)
    first = len(calls)
    language.require(READING, PACKING)
    assert len(calls) == first and torch.equal(state, torch.random.get_rng_state())
