"""Stages 1, 2 and 3 end to end: strings and media to loss, logits and gradients, against the original's."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from chatbridge.common.batch import MultimodalBatch
from chatbridge.conversation.prompt import PromptFormat
from chatbridge.conversation.segments import Media
from chatbridge.conversation.tokens import tokenize
from chatbridge.datasets.collate import Collator, Example
from chatbridge.processors.tokenizer import load_tokenizer
from tests.parity.model_cases import batch_with_media, build_model, full_logits, gradients, model_of, rows_of

NOISE = 1e-5


@pytest.mark.golden("chatbridge_s[123]_*")
def test_forward_and_backward(case):
    model = model_of(case)
    batch = batch_with_media(case, model)
    info, outputs = case.info, case.outputs
    assert torch.equal(batch.attention_mask_BL, outputs["attention_mask"])
    assert torch.equal(batch.labels_BL, outputs["targets"])

    embeds = model.fuse(batch)
    with torch.no_grad():
        logits = full_logits(model, batch, embeds)
    assert_close(embeds.detach(), outputs["inputs_embeds"], atol=1e-5, rtol=0)
    assert_close(logits, outputs["logits"][batch.attention_mask_BL.bool()], atol=3e-3, rtol=0)

    result = model(batch, return_logits=True)
    result.loss.backward()
    assert result.supervised_tokens == batch.supervised_tokens
    if math.isnan(float(info["loss"])):
        assert result.loss.isnan()
        assert result.supervised_tokens == 0
    else:
        assert result.loss.item() == pytest.approx(info["loss"], abs=1e-4)
        check_parts(result, outputs)
    check_gradients(case, gradients(model))
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def check_parts(result, outputs):
    """The sums, the samples' own losses and the logits kept are those of the whole."""
    kept = outputs["targets"][:, 1:] != -100
    logits, targets = outputs["logits"][:, :-1], outputs["targets"][:, 1:]
    assert_close(result.logits_KV.detach(), logits[kept], atol=3e-3, rtol=0)
    assert result.loss_sum.item() == pytest.approx(result.loss.item() * result.supervised_tokens, rel=1e-5)
    for row, (mine, keep) in enumerate(zip(result.sample_losses_B, kept, strict=True)):
        expected = torch.nn.functional.cross_entropy(logits[row][keep], targets[row][keep]) if keep.any() else 0.0
        assert float(mine) == pytest.approx(float(expected), abs=1e-3)


def check_gradients(case, found):
    info = case.info
    none = {name for name, grad in found.items() if grad is None}
    assert none == set(info["trainable_with_grad_None"])
    norms = {name: float(grad.norm()) for name, grad in found.items() if grad is not None}
    assert norms.keys() == info["grad_norms"].keys()
    for name, expected in info["grad_norms"].items():
        if name.startswith("Qformer") and name.endswith(".key.bias"):
            # Zero but for rounding: softmax does not see a shift of all scores.
            assert abs(norms[name] - expected) <= NOISE, name
        else:
            assert norms[name] == pytest.approx(expected, rel=1e-3, abs=NOISE), name
    for name, expected in case.part("outputs/grad").items():
        assert_close(found[name], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + NOISE)


def one_row(batch: MultimodalBatch, row: int) -> MultimodalBatch:
    """One sample of a batch by itself, without the padding that its neighbours made necessary."""
    keep = batch.attention_mask_BL[row].bool()
    alone = {
        name: getattr(batch, name)[row : row + 1, keep]
        for name in ("input_ids_BL", "attention_mask_BL", "labels_BL", "slots_BL")
    }
    rows = len(batch.ids)
    media = {k: v.unflatten(0, (rows, -1))[row] for k, v in batch.media.items()}
    return MultimodalBatch(ids=[batch.ids[row]], media=media, **alone)


@pytest.mark.golden("chatbridge_s[123]_*")
def test_default_rows_do_not_depend_on_their_neighbours(case):
    """Ours: BOS is seen by every row, positions count visible tokens, so that padding changes nothing."""
    model = model_of(case, compat="default")
    try:
        batch = batch_with_media(case, model, compat="default")
    except ValueError as error:
        assert "does not fit" in str(error)
        return
    with torch.no_grad():
        together = model(batch).sample_losses_B
        for row, loss in enumerate(together):
            alone = model(one_row(batch, row))
            assert alone.supervised_tokens > 0
            assert alone.loss.item() == pytest.approx(loss.item(), abs=1e-4)


@pytest.mark.golden("chatbridge_s[123]_*")
def test_default_equals_original_where_no_quirk_is_met(case):
    """A row that the original neither pads nor cuts has the same loss either way; a padded one has not."""
    model = model_of(case, compat="default")
    try:
        batch = batch_with_media(case, model, compat="default")
    except ValueError:
        return
    original = batch_with_media(case, model)
    with torch.no_grad():
        ours, theirs = model(batch).sample_losses_B, model_of(case)(original).sample_losses_B
    for row, seen in enumerate(original.attention_mask_BL.bool()):
        same_text = (batch.labels_BL[row] >= 0).sum() == (original.labels_BL[row] >= 0).sum() > 0
        same_length = seen.sum() == batch.attention_mask_BL[row].sum()
        if same_text and same_length:
            assert ours[row].item() == pytest.approx(theirs[row].item(), abs=1e-4)
        elif same_text and not seen[0]:
            # Left padding: the original hides BOS from this row and shifts its positions.
            assert ours[row].item() != pytest.approx(theirs[row].item(), abs=1e-4)


def test_slots_without_text_around_them(golden):
    """Where the original fails (a slot first of all, two slots side by side) the default works."""
    case = golden("chatbridge_edge_cases")
    model = build_model(case.folder, compat="default")
    tokenizer = load_tokenizer(case.folder / "tokenizer")
    size = model.bridges["visual"].encoder.patch_embed.img_size
    for result in case.info["results"]:
        text = result["conversation"]
        count = text.count("<query>")
        segments = PromptFormat().parse(text, [Media("image")] * count)
        media = {"image": list(torch.randn(count, 1, 3, *size))}
        batch = Collator.of(tokenizer)([Example(tokenize("edge", segments, tokenizer, rows_of(model)), media)])
        out = model(batch)
        out.loss.backward()
        assert out.supervised_tokens > 0 and out.loss.isfinite()
        assert model.bridges["visual"].projector.query_tokens.grad.abs().sum() > 0
        model.zero_grad()


@pytest.mark.golden("chatbridge_s2_*")
def test_the_original_cuts_through_media_as_through_text(case):
    """A limit inside the first slot leaves the first positions of the same samples, rows of media included."""
    model = model_of(case)
    on_the_right = Collator.of(load_tokenizer(case.folder / "tokenizer"))
    case.info["config"]["max_txt_len"] = 10**6
    whole = batch_with_media(case, model, collator=on_the_right)
    first = int((whole.slots_BL[0] >= 0).nonzero()[0])
    limit = first + 2
    case.info["config"]["max_txt_len"] = limit - 1  # BOS is not counted
    cut = batch_with_media(case, model, collator=on_the_right)
    assert cut.input_ids_BL.shape[1] == limit
    with torch.no_grad():
        assert_close(model.fuse(cut), model.fuse(whole)[:, :limit], atol=1e-5, rtol=0)
