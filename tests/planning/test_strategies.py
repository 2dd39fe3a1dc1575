"""What ``train.py --plan`` makes of strategy, offloading, checkpointing, accumulation, compilation and the links."""

from __future__ import annotations

import pytest

import train
from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.devices import device
from chatbridge.planning.batches import BatchShape, PlannedDataset
from chatbridge.planning.costs import resident
from chatbridge.planning.inventory import inventory, meta_model
from chatbridge.planning.sharding import ShardGroup, Sharding, language_shards
from chatbridge.planning.steps import Work
from chatbridge.planning.throughput import expected_throughput, links_of, transfers
from tests import tiny

STAGE1 = tiny.ROOT / "train_configs" / "chatbridge_pretrain.yaml"

LLM, LAYER, TABLE = 26_031_749_120, 634_408_960, 32_001 * 5120 * 2
"""Bytes of LLaMA-13B in half precision, of one of its 40 layers, and of its embeddings or its head."""

ROWS = -(-32_001 // 8) * 8 * 5120 * 2
"""Bytes of a table whose rows eight processes share, the last piece padded."""


@pytest.fixture(autouse=True)
def registered():
    register_all()


@pytest.fixture
def tree(tmp_path):
    return tiny.make_config(tmp_path)


def always(told):
    return told["memory"]["always"]


def test_more_processes_share_the_batch_and_hold_buckets(tree, run_plan):
    one, two = run_plan(tree, "--gpus", "1")[1], run_plan(tree, "--gpus", "2")[1]
    # Gradients are views of the reducer's buckets in the end, where there is one.
    assert always(one)["buckets"] == always(two)["gradients"] == 0
    assert always(two)["buckets"] == always(one)["gradients"] > 0
    a, b = (told["steps"]["images"]["expected"]["samples"] for told in (one, two))
    assert (a, b) == (4, 2)


def test_fsdp_shares_the_language_model_and_nothing_else(tree, run_plan):
    ddp, fsdp = (run_plan(tree, "--gpus", "2", "--strategy", name)[1] for name in ("ddp", "fsdp"))
    (llm,) = (part["bytes"] for part in ddp["model"]["parts"] if part["component"] == "llm")
    assert always(ddp)["weights"] - always(fsdp)["weights"] == pytest.approx(llm / 2, rel=1e-3)
    for kept in ("optimiser", "buckets", "buffers"):
        assert always(ddp)[kept] == always(fsdp)[kept]
    assert always(fsdp)["building"] == llm and always(fsdp)["pinned"] == always(ddp)["building"] == 0
    assert ddp["memory"]["steps"]["images"]["gathered"] == 0 < fsdp["memory"]["steps"]["images"]["gathered"]


@pytest.fixture(scope="module")
def published():
    """(inventory, groups of the language model) of the published stage 1."""
    register_all()
    model, _ = meta_model(load_config(STAGE1, defer_missing=True).config.model)
    return inventory(model), language_shards(model.llm)


MOVED = 80 * LAYER + 3 * ROWS + 3 * 5120 * 2
"""Bytes that a GPU puts together for one batch of the published run."""


def test_the_published_run_under_fsdp(published):
    count, shards = published
    ddp, fsdp, offloaded = Sharding("ddp", 8), Sharding("fsdp", 8), Sharding("fsdp", 8, offload=True)
    pieces = (40 * LAYER + 2 * ROWS + 5120 * 2) / 8
    assert LLM == 40 * LAYER + 2 * TABLE + 5120 * 2
    kept = [resident(count, shards, sharding, 0.0).weights for sharding in (ddp, fsdp, offloaded)]
    rest = kept[0] - LLM
    assert kept == [rest + LLM, rest + pieces, rest]
    assert shards.at_forward(fsdp) == 3 * LAYER
    # A piece on its way from host memory comes on top.
    assert shards.at_forward(offloaded) == 3 * LAYER + LAYER / 8
    links = links_of(device("a100-80gb"))
    plain, gathering, copying = (
        transfers(count.trainable_bytes, shards, links, sharding) for sharding in (ddp, fsdp, offloaded)
    )
    assert gathering.gather == pytest.approx(MOVED * 7 / 8 / 200e9) and gathering.copy == 0 == plain.gather
    assert plain.reduce == gathering.reduce == pytest.approx(2 * 4 * 110_206_848 * 7 / 8 / 200e9)
    assert copying.copy == pytest.approx(MOVED / 8 / 25e9)


def test_pinned_memory_is_rounded_up():
    group = ShardGroup((((13824, 5120), 2), ((5120,), 2)))
    assert group.pieces(8) == [13824 * 5120 * 2 // 8, 1280]
    assert group.pinned(8) == 2**25 + 2048
    assert ShardGroup((((8, 4), 2),)).pinned(1) == 64


def test_a_single_process_copies_and_does_not_overlap(tree, run_plan):
    tree["run"] |= {"strategy": "fsdp", "offload_frozen": True}
    told = run_plan(tree, "--gpus", "1")[1]
    rate = told["throughput"]
    assert rate["transfers"]["gather"] == 0 == rate["transfers"]["reduce"] and rate["transfers"]["copy"] > 0
    assert rate["step_seconds"] == rate["serial_seconds"] == rate["compute_seconds"] + rate["transfers"]["copy"]
    assert [(v["strategy"], v["offload"]) for v in told["variants"][::2]] == [("ddp", False), ("fsdp", True)]
    assert run_plan(tree, "--gpus", "1", "--strategy", "ddp")[1]["offload_frozen"] is False


@pytest.mark.parametrize(
    ("name", "rates", "nodes", "bound", "seconds"),
    [
        ("a100-80gb", {}, 1, "compute", None),
        ("a100-80gb", {"gpu": 5}, 1, "communication", MOVED * 7 / 8 / 5e9),
        ("a100-80gb", {"network": 1}, 2, "communication", None),
        ("a100-80gb", {"host": 1}, 1, "host copies", MOVED / 8 / 1e9),
        ("a10", {"gpu": 4}, 1, "communication", None),
    ],
)
def test_what_takes_longest_sets_the_pace(published, name, rates, nodes, bound, seconds):
    count, shards = published
    where, sharding = device(name), Sharding("fsdp", 8, nodes=nodes, offload=True)
    links = links_of(where, **rates)
    moved = transfers(count.trainable_bytes, shards, links, sharding)
    batch = BatchShape(32, 65, 1024, {})
    datasets = [PlannedDataset("one", "ti-cap", 1.0, 256, [batch], batch, False)]
    work = {"one": {"llm": Work(60e12, 60e12)}}
    rate = expected_throughput(datasets, work, 0.0, where, sharding, moved, links, 10)
    longest = {
        "compute": rate.compute_seconds, "communication": moved.gather + moved.reduce, "host copies": moved.copy,
    }  # fmt: skip
    if name == "a10":  # without NVLink collectives and copies share the lanes
        longest["communication"] += longest.pop("host copies")
    assert rate.bound == bound and rate.step_seconds == longest[bound] == max(longest.values())
    assert rate.serial_seconds == pytest.approx(sum(longest.values()))
    if seconds:
        assert rate.step_seconds == pytest.approx(seconds, rel=0.05)


def test_rates_of_links():
    links = links_of(device("a10"))
    assert links.shared and links.gpu == links.host == 25
    assert not links_of(device("h200")).shared and links_of(device("h200")).gpu == 200


def test_accumulation_gathers_for_every_batch_and_reduces_once(tree, run_plan):
    tree["run"] |= {"strategy": "fsdp"}
    once = run_plan(tree, "--gpus", "2")[1]["throughput"]["transfers"]
    tree["run"]["accum_grad_iters"] = 3
    thrice = run_plan(tree, "--gpus", "2")[1]["throughput"]["transfers"]
    assert thrice["gather"] == pytest.approx(3 * once["gather"]) and thrice["reduce"] == once["reduce"]


def test_gradients_of_earlier_batches_lie_outside_the_buckets(tree, run_plan):
    once = run_plan(tree, "--gpus", "2")[1]["memory"]
    tree["run"]["accum_grad_iters"] = 2
    twice = run_plan(tree, "--gpus", "2")[1]["memory"]
    assert once["always"]["gradients"] == 0 < once["always"]["learnt"] == once["always"]["buckets"]
    more = twice["steps"]["images"]["moments"]["loss"] - once["steps"]["images"]["moments"]["loss"]
    assert more == pytest.approx(once["always"]["learnt"])


def test_ways_to_run_the_published_stage_on_small_gpus(run_plan):
    """Vicuna-13B trains on GPUs of 24 GB; under ddp it does not fit there."""
    room = 24
    status, told = run_plan(STAGE1, "--gpus", "8", "--memory-gb", str(room))
    ways = told["variants"]
    assert [(v["strategy"], v["offload"], v["checkpointing"]) for v in ways] == [
        ("ddp", False, False), ("ddp", False, True), ("fsdp", False, False), ("fsdp", False, True),
        ("fsdp", True, False), ("fsdp", True, True),
    ]  # fmt: skip
    assert [v["parts"] for v in ways] == [None, None, 2, 1, 2, 1]
    assert [v["chosen"] for v in ways] == [True] + 5 * [False]
    assert all(v["peak"] < 0.85 * room * 1e9 for v in ways if v["parts"])
    assert all(v["samples"] * v["parts"] == 32 and v["accumulate"] == v["parts"] for v in ways if v["parts"])
    assert ways[0]["uncut"] == told["memory"]["peak"] > room * 1e9 and status == 1
    (problem,) = told["problems"]
    assert "run.strategy=fsdp saves 21." in problem and "gradient_checkpointing=true saves 12." in problem
    more = " run.accum_grad_iters=2 with every batch size and batch_tokens divided by 2"
    assert f"; --options run.strategy=fsdp{more} fits, at" in problem
    page = (tiny.ROOT / "docs" / "planning.md").read_text()
    for way in (way for way in ways if way["parts"]):
        keys = (way["strategy"], *("yes" if way[key] else "no" for key in ("offload", "checkpointing")))
        cells = f"{way['samples']:g} × {way['parts']} | {way['peak'] / 1e9:.1f} |"
        rows = [line for line in page.splitlines() if line.startswith("| " + " | ".join(keys))]
        assert cells in rows[0], f"docs/planning.md: {keys} is now {cells}"


def test_the_way_that_is_proposed_is_as_it_was_said(tree, run_plan):
    del tree["datasets"]["sounds"]
    told = run_plan(tree, "--gpus", "2")[1]
    whole = next(v["peak"] for v in told["variants"] if v["chosen"])
    room = ["--gpus", "2", "--memory-gb", str((whole - 1e4) / 0.85 / 1e9)]
    way = next(v for v in run_plan(tree, *room)[1]["variants"] if v["chosen"])
    assert way["parts"] == 2
    tree["datasets"]["images"]["batch_size"] //= 2
    told = run_plan(tree, *room, "--options", *way["options"].split())[1]
    assert not told["problems"] and told["memory"]["peak"] == way["peak"]
    assert told["throughput"] == way["throughput"]


def test_nothing_fits(tree, run_plan):
    status, told = run_plan(tree, "--gpus", "2", "--memory-gb", "0.5")
    assert status == 1 and all(v["parts"] is None for v in told["variants"])
    assert any("take GPUs with more memory" in line for line in told["problems"])


def test_the_text_tells_rates_host_memory_and_compilation(tmp_path, tree, capsys):
    file = str(tiny.write_yaml(tmp_path, tree))
    keys = ["run.strategy=fsdp", "run.offload_frozen=true", "run.compile=inductor"]
    train.main(["--cfg-path", file, "--plan", "--gpus", "2", "--nodes", "2", "--options", *keys])
    said = capsys.readouterr().out
    assert "strategy fsdp, offload_frozen;" in said and "layers gathered" in said
    assert "Host memory of a node: 0.00 GB for a copy" in said
    assert "GB locked for the offloaded pieces" in said
    assert "at 200 GB/s between GPUs and 25 GB/s between nodes" in said and "from host memory" in said
    assert "bounds the step: all of it taken to overlap" in said and "(rates are assumed)" in said
    assert "run.compile (inductor): layers are compiled when they first run" in said
    assert "*  fsdp      yes      no" in said


def test_senseless_situations_are_refused(tmp_path, tree, capsys):
    with pytest.raises(ValueError, match="'zero' is not one of ddp, fsdp"):
        Sharding("zero")
    with pytest.raises(ValueError, match="run.offload_frozen"):
        Sharding("ddp", offload=True)
    file = str(tiny.write_yaml(tmp_path, tree))
    for link in ("--link-gbs", "--network-gbs", "--host-gbs"):
        capsys.readouterr()
        assert train.main(["--cfg-path", file, "--plan", link, "0"]) == 1
        assert "above 0 GB/s" in capsys.readouterr().err
