"""Memory and time of one run in different placements: strategies, processes, accumulation, links."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.devices import device
from chatbridge.common.optim import build_optimizers
from chatbridge.planning.batch_shapes import BatchShape, PlannedDataset
from chatbridge.planning.costs import CostModel
from chatbridge.planning.fsdp import ShardGroups
from chatbridge.planning.memory import resident_memory, step_memory
from chatbridge.planning.model import meta_model
from chatbridge.planning.parameters import count_parameters
from chatbridge.planning.placement import Placement
from chatbridge.planning.recorder import BRIDGES, NEXT_LAYER
from chatbridge.planning.simulator import Simulator, Work
from chatbridge.planning.throughput import expected_throughput, seconds, transfer_seconds
from chatbridge.runners import TrainingConfig
from tests import tiny
from tests.planning.test_simulator import model, on_meta, real_step, shape_of

A100 = device("a100-80gb")

LLM, LAYER, TABLE = 26_031_749_120, 634_408_960, 32_001 * 5120 * 2
"""Bytes of LLaMA-13B in half precision, of one of its 40 layers, and of its embeddings or its head."""

ROWS = -(-32_001 // 8) * 8 * 5120 * 2
"""Bytes of a table whose rows eight processes share, the last piece padded."""

MOVED = 80 * LAYER + 3 * ROWS + 3 * 5120 * 2
"""Bytes that a GPU puts together for one batch of the published run."""


@pytest.fixture(scope="module")
def run():
    """A toy run over two processes."""
    made, batch = on_meta(), shape_of()
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad])
    dataset = PlannedDataset("images", "ti-cap", 1.0, 8, [batch], batch, False)
    count, where = count_parameters(made), Placement(A100, 2)
    return CostModel(
        made, lambda on: on_meta(checkpointing=on), [optimizer], count, lambda _: [dataset], where, None, 9
    )


def test_fsdp_shares_the_language_model_and_nothing_else(run):
    ddp, fsdp = (run.costs(replace(run.where, strategy=name)) for name in ("ddp", "fsdp"))
    (llm,) = (part.bytes for part in run.count.parts if part.component == "llm")
    assert ddp.resident.weights - fsdp.resident.weights == pytest.approx(llm / 2, rel=1e-2)
    for kept in ("optimizer", "buckets", "buffers"):
        assert getattr(ddp.resident, kept) == getattr(fsdp.resident, kept)
    assert fsdp.resident.building == llm and fsdp.resident.pinned == ddp.resident.building == 0
    assert ddp.memory["images"].gathered == 0 < fsdp.memory["images"].gathered


def test_accumulation(run):
    """Gradients of earlier batches lie outside the buckets; layers are gathered for every batch."""
    once, thrice = (run.costs(replace(run.where, strategy="fsdp", accumulate=n)) for n in (1, 3))
    assert once.resident.gradients == 0 < once.resident.learnt == once.resident.buckets
    more = thrice.memory["images"].moments["loss"] - once.memory["images"].moments["loss"]
    assert more == once.resident.learnt
    assert thrice.throughput.transfers["gather"] == pytest.approx(3 * once.throughput.transfers["gather"])
    assert thrice.throughput.transfers["reduce"] == once.throughput.transfers["reduce"]
    assert thrice.throughput.compute_seconds == pytest.approx(3 * once.throughput.compute_seconds, rel=1e-3)
    assert thrice.throughput.samples_per_second == pytest.approx(once.throughput.samples_per_second, rel=1e-3)
    alone = replace(run.where, gpus=1)
    a, b = (run.costs(replace(alone, accumulate=n)) for n in (1, 2))
    assert a.resident.buckets == 0 < a.resident.gradients == a.resident.learnt
    assert b.memory["images"].moments["loss"] - a.memory["images"].moments["loss"] == a.resident.learnt
    assert b.memory["images"].moments[BRIDGES] == a.memory["images"].moments[BRIDGES]


def test_gradients_of_earlier_batches_take_what_they_really_do():
    """One process: a step with content whose gradients are there already, beside the sum."""
    made, shape = model(), shape_of("image+audio")
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    learnt = sum(p.nbytes for p in made.parameters() if p.requires_grad)
    seen, *_ = real_step(made, shape, {"amp": None, "world": 1})
    meta = on_meta()
    optimizers = build_optimizers(meta.named_parameters(), TrainingConfig(output_dir=""))
    simulator = Simulator(meta, None, 1)
    update = simulator.update(optimizers)
    where = Placement(A100, accumulate=2)
    planned = step_memory(simulator.step(shape), ShardGroups(None).placed(where), where, update, learnt)
    assert max(planned.moments[phase] for phase in seen.peaks) == pytest.approx(
        max(seen.peaks.values()) + learnt, rel=0.01
    )


def test_a_single_process_copies_and_does_not_overlap(run):
    rate = run.costs(replace(run.where, gpus=1, strategy="fsdp", offload=True)).throughput
    assert rate.transfers["gather"] == 0 == rate.transfers["reduce"] and rate.transfers["copy"] > 0
    assert rate.step_seconds == rate.serial_seconds == rate.compute_seconds + rate.transfers["copy"]


def test_fsdp_is_not_advised_where_the_language_model_learns(run, monkeypatch):
    assert [v.strategy for v in run.variants([8], False)] == ["ddp", "fsdp", "fsdp"]
    parts = [replace(part, trainable=True) for part in run.count.parts]
    monkeypatch.setattr(run, "count", replace(run.count, parts=parts))
    assert [v.strategy for v in run.variants([8], False)] == ["ddp"]


@pytest.fixture(scope="module")
def published():
    """(parameters, groups of the language model) of the published stage 1."""
    register_all()
    config = load_config(tiny.ROOT / "train_configs" / "chatbridge_pretrain.yaml", defer_missing=True).config
    model, _ = meta_model(config.model)
    return count_parameters(model), ShardGroups(model.llm)


def test_the_published_run_under_fsdp(published):
    count, groups = published
    ddp, fsdp = Placement(A100, 8), Placement(A100, 8, strategy="fsdp")
    offloaded = replace(fsdp, offload=True)
    pieces = (40 * LAYER + 2 * ROWS + 5120 * 2) / 8
    assert LLM == 40 * LAYER + 2 * TABLE + 5120 * 2
    kept = [resident_memory(count, groups, where, 0.0).weights for where in (ddp, fsdp, offloaded)]
    rest = kept[0] - LLM
    assert kept == [rest + LLM, rest + pieces, rest]
    assert groups.placed(fsdp).gathered[NEXT_LAYER] == 3 * LAYER
    # A piece on its way from host memory comes on top.
    assert groups.placed(offloaded).gathered[NEXT_LAYER] == 3 * LAYER + LAYER / 8
    assert 1 < groups.placed(offloaded).pinned / pieces < 2 and not groups.placed(fsdp).pinned
    plain, gathering, copying = (
        transfer_seconds(groups.placed(where).moved, count.trainable_bytes, where) for where in (ddp, fsdp, offloaded)
    )
    assert gathering["gather"] == pytest.approx(MOVED * 7 / 8 / 200e9) and gathering["copy"] == 0 == plain["gather"]
    assert plain["reduce"] == gathering["reduce"] == pytest.approx(2 * 4 * 110_206_848 * 7 / 8 / 200e9)
    assert copying["copy"] == pytest.approx(MOVED / 8 / 25e9)


def test_pinned_memory_is_rounded_up():
    linear = torch.nn.Linear(5120, 13824, device="meta", dtype=torch.float16)
    groups = ShardGroups(None)
    groups.rest = groups._group(linear.parameters())
    where = Placement(A100, 8, strategy="fsdp", offload=True)
    assert groups.placed(where).pinned == 2**25 + 2**12  # 17.7 MB and 3456 bytes


@pytest.mark.parametrize(
    ("name", "rates", "nodes", "bound", "expected"),
    [
        ("a100-80gb", {}, 1, "compute", None),
        ("a100-80gb", {"link_gbs": 5}, 1, "communication", MOVED * 7 / 8 / 5e9),
        ("a100-80gb", {"network_gbs": 1}, 2, "communication", None),
        ("a100-80gb", {"host_gbs": 1}, 1, "host copies", MOVED / 8 / 1e9),
        ("a10", {"link_gbs": 4}, 1, "communication", None),
    ],
)
def test_what_takes_longest_sets_the_pace(published, name, rates, nodes, bound, expected):
    count, groups = published
    where = Placement(device(name), 8 // nodes, nodes, "fsdp", offload=True, **rates)
    moved = transfer_seconds(groups.placed(where).moved, count.trainable_bytes, where)
    batch = BatchShape(32, 65, 1024, {})
    datasets = [PlannedDataset("one", "ti-cap", 1.0, 256, [batch], batch, False)]
    rate = expected_throughput(datasets, {"one": {"llm": Work(60e12, 60e12)}}, 0.0, moved, where, 10)
    parts = {"compute": rate.compute_seconds, "communication": moved["gather"] + moved["reduce"]}
    if name == "a10":  # without NVLink collectives and copies share the lanes
        parts["communication"] += moved["copy"]
    else:
        parts["host copies"] = moved["copy"]
    assert rate.bound == bound and rate.step_seconds == parts[bound] == max(parts.values())
    assert rate.serial_seconds == pytest.approx(sum(parts.values()))
    if expected:
        assert rate.step_seconds == pytest.approx(expected, rel=0.05)


def test_seconds_follow_peak_and_utilisation():
    work = [Work(1e12, 2e12), Work(1e12, 0.0, single=1e12)]
    given = device("h100", tflops=100, utilisation=0.5)
    assert seconds(work, given) == pytest.approx((3 / 100 + 1 / 67) / 0.5)
    assert seconds(work, replace(given, utilisation=1.0)) == pytest.approx(3 / 100 + 1 / 67)


def test_senseless_placements_are_refused():
    with pytest.raises(ValueError, match="'zero' is not one of ddp, fsdp"):
        Placement(A100, strategy="zero")
    with pytest.raises(ValueError, match="run.offload_frozen"):
        Placement(A100, offload=True)
