"""Generation from prompts with media: greedy and beams, one conversation and a left-padded batch."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from chatbridge.conversation.prompt import PromptFormat
from chatbridge.conversation.segments import Media
from chatbridge.conversation.tokens import tokenize
from chatbridge.datasets.collate import Collator, Example
from chatbridge.processors.tokenizer import load_tokenizer
from tests.parity.model_cases import build_model, rows_of


def prompt_batch(case, model, prompts, placeholder, kind, bos):
    """A left-padded batch of open prompts; media of `kind` (`gen` or `batch`) from the case."""
    tokenizer = load_tokenizer(case.folder / "tokenizer")
    video, audio = case.inputs[f"{kind}_video"], case.inputs[f"{kind}_audio"]
    examples = []
    for index, prompt in enumerate(prompts):
        segments = PromptFormat().parse(prompt, [Media("video"), Media("audio")], placeholder)
        tokens = tokenize(str(index), segments, tokenizer, rows_of(model))
        examples.append(Example(tokens, {"video": [video[index]], "audio": [audio[index]]}))
    return Collator(tokenizer.bos_id if bos else None, tokenizer.pad_id, "left")(examples)


def new_ids(rows, eos):
    """The golden ids without the BOS that transformers 4.28 puts in front, and up to the end token."""
    rows = [row[1:] for row in rows]
    return [row[: row.index(eos)] if eos in row else row for row in rows]


@pytest.fixture(params=["chat", "batch"])
def setup(request, golden):
    case = golden("chatbridge_generate")
    model = build_model(case.folder, case.info["config"]["multi_sample"], case.info["weights_file"])
    if request.param == "chat":
        batch = prompt_batch(case, model, [case.info["chat_prompt"]], "<ImageHere>", "gen", bos=True)
    else:
        batch = prompt_batch(case, model, case.info["batch_prompts"], "<query>", "batch", bos=False)
    return case, request.param, model, batch


def test_greedy(setup):
    case, kind, model, batch = setup
    scores = case.outputs[f"{kind}_scores"]
    length = scores.shape[1]
    with torch.no_grad():
        embeds = model.fuse(batch)
    assert_close(embeds, case.outputs[f"{kind}_embeds"], atol=1e-5, rtol=0)
    if kind == "batch":
        assert torch.equal(batch.attention_mask_BL, case.outputs["batch_mask"])

    expected = new_ids(case.info[f"{kind}_ids"], model.llm.eos_ids[0])
    assert model.generate(batch, length) == expected
    result = model.llm.generate(
        embeds, batch.attention_mask_BL, length, output_scores=True, return_dict_in_generate=True
    )
    steps = torch.stack(result.scores, dim=1)
    for row, ids in enumerate(expected):
        seen = min(len(ids) + 1, length)  # what follows the end token depends on the filling
        assert_close(steps[row, :seen], scores[row, :seen], atol=5e-3, rtol=0)


def test_beams(setup):
    case, kind, model, batch = setup
    for name, expected in case.outputs.items():
        if not (name.startswith(f"{kind}_beam") and name.endswith("_ids")):
            continue
        beams = int(name.removeprefix(f"{kind}_beam").removesuffix("_ids"))
        length = case.outputs[f"{kind}_scores"].shape[1]
        got = model.generate(batch, length, num_beams=beams)
        assert got == new_ids(expected.tolist(), model.llm.eos_ids[0])


@pytest.mark.parametrize("setup", ["batch"], indirect=True)
def test_padding_does_not_matter(setup):
    """Each row of the batch is what it gives alone: positions count visible tokens only."""
    case, _, model, batch = setup
    together = model.generate(batch, 6)
    for index, prompt in enumerate(case.info["batch_prompts"]):
        alone = prompt_batch(case, model, [prompt], "<query>", "batch", bos=False)
        alone.media = {name: tensor[index : index + 1] for name, tensor in batch.media.items()}
        assert model.generate(alone, 6) == [together[index]]
