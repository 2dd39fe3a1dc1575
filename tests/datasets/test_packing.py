"""Packed rows and token budgets: the same losses as row by row, samples kept apart, deterministic."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import train
from chatbridge.common.batch import IGNORE
from chatbridge.datasets.collate import Collator, Example, TokenBudget, first_fit
from tests import tiny, toy_model
from tests.datasets.test_collate import example
from tests.datasets.tools import folder_set, names, shards, stream, take, write_folder, write_shards

SHAPES = {"image": (1, 3, 28, 28), "audio": (2, 32, 32)}


def test_first_fit():
    assert first_fit([5, 4, 3, 2, 6, 1], 8) == [[0, 2], [1, 3, 5], [4]]
    assert first_fit([], 8) == []
    with pytest.raises(ValueError, match="9 positions does not fit into a row of 8"):
        first_fit([9], 8)


@pytest.mark.parametrize("pack", [None, 16])
def test_budget(pack):
    import random

    rng = random.Random(1)
    for _ in range(200):
        budget, lengths = TokenBudget(64, pack), [rng.randint(1, 16) for _ in range(60)]
        taken = next(i for i, length in enumerate(lengths) if not budget.add(length))
        rows = first_fit(lengths[:taken], pack) if pack else [[i] for i in range(taken)]
        longest = pack or max(lengths[:taken])
        assert len(rows) * longest <= 64
        more = first_fit(lengths[: taken + 1], pack) if pack else [[i] for i in range(taken + 1)]
        assert len(more) * (pack or max(lengths[: taken + 1])) > 64
    assert TokenBudget(8).add(100)  # the first always fits: a batch is never empty


def samples(tokenizer, count=7):
    """Dialogues of different lengths about pictures, sounds, both or neither."""
    from chatbridge.conversation import MediaSource

    torch.manual_seed(0)
    sources = [
        [MediaSource("image")],
        [],
        [MediaSource("image"), MediaSource("audio")],
        [MediaSource("audio")],
        [MediaSource("image", 2)],
    ]
    made = []
    for i in range(count):
        one = example(tokenizer, f"s{i}", sources[i % 5], "word " * (1 + i * 5 % 9))
        for modality, tensors in one.media.items():
            one.media[modality] = [torch.randn(SHAPES[modality]) for _ in tensors]
        one.tokens.input_ids = [i % 40 for i in one.tokens.input_ids]
        one.tokens.labels = [label if label == IGNORE else label % 40 for label in one.tokens.labels]
        made.append(one)
    return made


@pytest.fixture
def queries(monkeypatch):
    monkeypatch.setattr("tests.datasets.test_collate.QUERIES", {"image": toy_model.Q, "audio": toy_model.Q})
    monkeypatch.setattr("tests.datasets.test_collate.SHAPES", SHAPES)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("bos", [True, False])
def test_losses_and_gradients_equal_the_unpacked_ones(tokenizer, queries, attention, bos):
    language = toy_model.llm()
    language.model.set_attn_implementation(attention)
    model = toy_model.model(language=language)
    collator = Collator(tokenizer.bos_id if bos else None, tokenizer.pad_id)
    packing = Collator(collator.bos_id, tokenizer.pad_id, pack=160)
    made = samples(tokenizer)
    if not bos:
        made[1].tokens.labels[0] = made[1].tokens.input_ids[0]  # first of its row: nothing predicts it
    plain, packed = collator(made), packing(made)
    assert len(packed.input_ids_BL) < len(made) and sorted(packed.ids) == sorted(plain.ids)
    assert plain.supervised_tokens == packed.supervised_tokens
    one, two = model(plain), model(packed)
    assert float(one.loss.detach()) == pytest.approx(float(two.loss.detach()), abs=1e-5)
    assert float(one.loss_sum.detach()) == pytest.approx(float(two.loss_sum.detach()), rel=1e-5)
    losses = dict(zip(plain.ids, zip(one.sample_losses_B, one.sample_tokens_B, strict=True), strict=True))
    for name, loss, tokens in zip(packed.ids, two.sample_losses_B, two.sample_tokens_B, strict=True):
        assert float(loss) == pytest.approx(float(losses[name][0]), abs=1e-5) and tokens == losses[name][1]
    gradients = []
    for output in (one, two):
        model.zero_grad()
        output.loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-5, rtol=1e-4)


def test_a_sample_does_not_see_its_neighbours(tokenizer, queries):
    model, made = toy_model.model(), samples(tokenizer)
    packing = Collator(tokenizer.bos_id, tokenizer.pad_id, pack=160)
    before = packing(made)
    made[0].media["image"][0] += 1.0
    made[0].tokens.input_ids = [(i + 1) % 40 for i in made[0].tokens.input_ids]
    one, two = model(before), model(packing(made))
    changed = (one.sample_losses_B - two.sample_losses_B).abs() > 1e-6
    assert [name for name, different in zip(before.ids, changed.tolist(), strict=True) if different] == ["s0"]


def test_positions_samples_and_labels_of_packed_rows(tokenizer):
    made = [Example(example(tokenizer, name, [], text).tokens) for name, text in (("a", "yes"), ("b", "no no"))]
    batch = Collator(tokenizer.bos_id, tokenizer.pad_id, pack=100)(made)
    sizes = [len(e.tokens) + 1 for e in made]
    assert batch.input_ids_BL.shape == (1, sum(sizes))
    assert batch.position_ids_BL[0].tolist() == [*range(sizes[0]), *range(sizes[1])]
    assert batch.samples_BL[0].tolist() == [0] * sizes[0] + [1] * sizes[1]
    assert batch.labels_BL[0, sizes[0]] == IGNORE
    moved = batch.to("meta")
    assert moved.samples_BL.device.type == "meta"


def test_an_attention_that_does_not_keep_samples_apart_is_refused_by_name(monkeypatch):
    """As flash kernels do, this one knows of no mask, for which transformers then makes none."""

    def causal(module, query, key, value, mask, **settings):
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True, scaling=settings["scaling"])

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "causal_only", causal)
    language = toy_model.llm()
    language.model.set_attn_implementation("causal_only")
    with pytest.raises(ValueError, match=r"\(llama, attention causal_only\): samples that share a row.*sdpa or eager"):
        language.block_mask(torch.zeros(1, 4, dtype=torch.long))


def test_left_padding_cannot_be_packed(tokenizer):
    with pytest.raises(ValueError, match="padded on the left"):
        Collator(tokenizer.bos_id, tokenizer.pad_id, "left", pack=100)


@pytest.mark.parametrize("pack", [None, 80])
@pytest.mark.parametrize("kind", ["folder", "sequence"])
def test_budgets_of_positions(tmp_path, kind, pack):
    """Batches fill their budget and go past it never; every sample is read once an epoch, by one of the ranks."""
    keys = {"batch_tokens": 960, "pack": pack, "batch_size": 1}
    write_folder(tmp_path / "folder", 40)
    write_shards(tmp_path / "tars", [12, 9, 19])
    seen = []
    for rank in range(2):
        if kind == "folder":
            dataset = folder_set(tmp_path / "folder", **keys)
        else:
            dataset = shards(tmp_path / "tars", access="sequence", shuffle=7, **keys)
        batches = take(stream([dataset], 12, rank, 2), 12)
        assert all(batch.input_ids_BL.numel() <= 480 for batch in batches)
        fill = sum(int(batch.attention_mask_BL.sum()) for batch in batches) / (12 * 480)
        assert fill > (0.85 if pack else 0.5)
        seen.append([i for batch in batches for i in batch.ids])
    if kind == "folder" and not pack:  # first-fit changes the order inside a batch
        assert len(set(seen[0][:20] + seen[1][:20])) == 40


def test_a_sample_longer_than_a_row_is_replaced_and_counted(tmp_path):
    write_folder(tmp_path / "folder", 12)
    entries = json.loads((tmp_path / "folder" / "list.json").read_text())
    entries[3]["caption"] = "much " * 60
    (tmp_path / "folder" / "list.json").write_text(json.dumps(entries))
    batches = take(stream([folder_set(tmp_path / "folder", pack=30)], 6), 3)
    (entry,) = [entry for batch in batches for entry in batch.ledger]
    assert entry.sample_id == "folder3" and "more than the 30 of a row" in entry.reason


def test_packing_draws_the_same_samples_as_not_packing(tmp_path):
    write_folder(tmp_path / "folder", 20)
    plain = take(stream([folder_set(tmp_path / "folder")], 8), 8)
    packed = take(stream([folder_set(tmp_path / "folder", pack=64)], 8), 8)
    assert [sorted(ids) for _, ids in names(plain)] == [sorted(ids) for _, ids in names(packed)]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"pack": 64, "batch_tokens": 32}, "pack (64) is more than the whole batch may have"),
        ({"pack": 0}, "datasets.images.pack: 0 is below the smallest allowed value"),
    ],
)
def test_bad_settings(tmp_path, capsys, keys, said):
    tree = tiny.make_config(tmp_path, max_steps=2)
    tree["datasets"]["images"] |= keys
    assert tiny.run(tmp_path, tree, "--check") == 1
    assert said in capsys.readouterr().err


def test_a_budget_that_the_ranks_cannot_share(tmp_path):
    write_folder(tmp_path / "folder", 4)
    with pytest.raises(ValueError, match="batch_tokens: 100 positions shared by 4 processes do not hold one row of 30"):
        stream([folder_set(tmp_path / "folder", batch_tokens=100, pack=30)], 2, 0, 4)


def test_training_packed_equals_training_unpacked(tmp_path):
    """A whole run by configuration: the same losses, step by step."""
    tree = tiny.make_config(tmp_path, max_steps=3)
    rows = []
    for name, pack in (("plain", None), ("packed", 60)):
        for dataset in tree["datasets"].values():
            dataset["pack"] = pack
        config = str(tiny.write_yaml(tmp_path, tree))
        assert train.main(["--cfg-path", config, "--options", f"run.output_dir={tmp_path / name}"]) == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows.append([json.loads(line) for line in lines])
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["tokens"] == b["tokens"]
