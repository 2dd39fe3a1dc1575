"""Optimizer steps of stage 1: schedule, loss, backward, AdamW, against the original's losses and parameters."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from chatbridge.common.optim import parameter_groups, set_learning_rate
from chatbridge.common.registry import RUNNERS, TASKS
from chatbridge.conversation.dialogue import MediaSource
from chatbridge.conversation.prompt import caption_segments
from chatbridge.datasets.collate import Example
from chatbridge.models import to_original
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.tasks.base import Rendered
from tests.parity.model_cases import build_model, original_weights, rows_of
from tests.variants import built, configured

END, MAX_TOKENS = "\n", 150


def caption_batch(case, model, modality):
    tokenizer = load_tokenizer(case.folder / "tokenizer")
    task, examples = built(TASKS, "alignment", "original", max_txt_len=MAX_TOKENS), []
    for index, text in enumerate(case.info["texts"]):
        segments = caption_segments([MediaSource(modality)], text, END)
        tokens = task.tokenize(Rendered(str(index), segments), tokenizer, rows_of(model))
        examples.append(Example(tokens, {modality: [case.inputs[modality][index]]}))
    return task.collator(tokenizer)(examples)


def schedule_of(config):
    keys = ("init_lr", "min_lr", "warmup_steps", "iters_per_epoch", "max_epoch")
    settings = {key: config[key] for key in keys} | {"warmup_lr": config["warmup_start_lr"]}
    return configured(RUNNERS, "training", "original", output_dir="", **settings).schedule()


@pytest.mark.golden("chatbridge_train_steps*")
def test_losses_and_parameters(case):
    config = case.info["config"]
    model = build_model(case.folder, config["multi_sample"], case.info["weights_file"]).train()
    batches = {modality: caption_batch(case, model, modality) for modality in ("image", "audio")}
    groups = parameter_groups(model.named_parameters(), config["weight_decay"])
    optimizer = torch.optim.AdamW(groups, lr=config["init_lr"], betas=tuple(config["betas"]), eps=config["eps"])
    schedule, losses, rates = schedule_of(config), [], []
    for step in range(config["max_epoch"] * config["iters_per_epoch"]):
        rates.append(schedule(step))
        set_learning_rate([optimizer], rates[-1])
        loss = model(batches["audio" if step % config["iters_per_epoch"] == 1 else "image"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert rates == pytest.approx(case.info["lrs"], rel=1e-12)
    assert losses == pytest.approx(case.info["losses"], abs=2e-3)

    after, before = to_original(model, full=True), original_weights(case.folder).weights
    for name, expected in case.part("outputs/after").items():
        assert_close(after[name], expected, atol=5e-5, rtol=0)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert len(changed) == case.info["n_changed"]
    frozen = tuple(name + "." for name in case.info["top_level_modules_unchanged"])
    assert not any(name.startswith(frozen) for name in changed)
