"""What trains, and which parts are in training mode after `model.train()`."""

from __future__ import annotations

import pytest
import torch

from chatbridge.common.optim import parameter_groups
from tests.parity.model_cases import build_model, trainable_names
from tests.variants import MODES

PARTS = {
    "visual_encoder": lambda m: m.bridges["visual"].encoder,
    "ln_vision": lambda m: m.bridges["visual"].norm,
    "audio_encoder": lambda m: m.bridges["audio"].encoder,
    "ln_audio": lambda m: m.bridges["audio"].norm,
    "Qformer": lambda m: m.bridges["visual"].projector.qformer,
    "llama_model": lambda m: m.llm.model,
    "llama_proj": lambda m: m.bridges["visual"].projector.projection,
    "audio_trans": lambda m: m.bridges["audio"].adapter,
}


@pytest.fixture(params=["freeze_qformer_False", "freeze_qformer_True"])
def setup(request, golden):
    case = golden("optimizer_groups")
    frozen = request.param.endswith("True")
    expected = case.info["results"][request.param]
    return lambda compat: (build_model(case.folder, freeze_perceivers=frozen, compat=compat), expected)


def test_trainable_names(setup):
    model, expected = setup("original")
    assert set(trainable_names(model)) == set(expected["trainable"])
    assert len(expected["trainable"]) == sum(p.requires_grad for p in model.parameters())
    frozen = sum(not p.requires_grad for p in model.parameters())
    assert frozen == expected["n_frozen_in_group"]


def test_groups(setup):
    """One group, everything decayed; parameters without a gradient may as well be left out of it."""
    model, expected = setup("original")
    (wanted,) = expected["groups"]
    (group,) = parameter_groups(model.named_parameters(), wanted["weight_decay"])
    assert group["weight_decay"] == wanted["weight_decay"]
    assert len(group["params"]) + expected["n_frozen_in_group"] == wanted["n_params"]
    defaults = torch.optim.AdamW([group]).defaults
    assert {k: defaults[k] for k in ("eps", "amsgrad")} == {k: wanted[k] for k in ("eps", "amsgrad")}
    assert list(defaults["betas"]) == wanted["betas"]


@pytest.mark.parametrize("compat", MODES)
def test_modes_after_train(setup, compat):
    model, expected = setup(compat)
    flags = expected["train_mode_after_model_train"]
    model.train()
    got = {name: PARTS[name](model).training for name in flags}
    if compat == "default":
        assert got.pop("llama_model") is False, "a frozen language model has no training mode"
        flags = {name: flag for name, flag in flags.items() if name != "llama_model"}
    assert got == flags
    model.eval()
    assert not any(module.training for module in model.modules())
