"""What ``train.py --plan`` makes of strategy, offloading, checkpointing, accumulation, compilation and the links."""

from __future__ import annotations

import pytest

import train
from chatbridge import register_all
from chatbridge.common.devices import device
from chatbridge.planning.links import links_of
from chatbridge.planning.sharding import ShardGroup, Sharding
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


def test_the_published_run_under_fsdp(run_plan):
    said = {
        name: run_plan(STAGE1, "--gpus", "8", "--options", f"run.strategy={name}", *more)[1]
        for name, more in (("ddp", []), ("fsdp", ["run.offload_frozen=true"]))
    }
    kept = run_plan(STAGE1, "--gpus", "8", "--strategy", "fsdp")[1]
    pieces = (40 * LAYER + 2 * ROWS + 5120 * 2) / 8
    assert LLM == 40 * LAYER + 2 * TABLE + 5120 * 2
    rest = always(said["ddp"])["weights"] - LLM
    assert always(said["fsdp"])["weights"] == rest and always(kept)["weights"] == rest + pieces
    assert kept["memory"]["steps"]["laion"]["gathered"] == 3 * LAYER
    # A piece on its way from host memory comes on top.
    assert said["fsdp"]["memory"]["steps"]["laion"]["gathered"] == 3 * LAYER + LAYER / 8
    moved = 80 * LAYER + 3 * ROWS + 3 * 5120 * 2
    transfers = kept["throughput"]["transfers"]
    assert transfers["gather"] == pytest.approx(moved * 7 / 8 / 200e9) and transfers["copy"] == 0
    assert transfers["reduce"] == pytest.approx(2 * 4 * 110_206_848 * 7 / 8 / 200e9)
    assert said["fsdp"]["throughput"]["transfers"]["copy"] == pytest.approx(moved / 8 / 25e9)
    assert said["ddp"]["throughput"]["transfers"] == {**transfers, "gather": 0.0}


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
    ("more", "bound", "seconds"),
    [
        ([], "compute", None),
        (["--link-gbs", "5"], "communication", (80 * LAYER + 3 * ROWS + 3 * 5120 * 2) * 7 / 8 / 5e9),
        (["--nodes", "2", "--gpus", "4", "--network-gbs", "1"], "communication", None),
        (["--host-gbs", "1"], "host copies", (80 * LAYER + 3 * ROWS + 3 * 5120 * 2) / 8 / 1e9),
    ],
)
def test_what_takes_longest_sets_the_pace(run_plan, more, bound, seconds):
    keys = ["--options", "run.strategy=fsdp", "run.offload_frozen=true"]
    rate = run_plan(STAGE1, "--gpus", "8", *more, *keys)[1]["throughput"]
    assert rate["bound"] == bound
    moved = rate["transfers"]
    longest = {
        "compute": rate["compute_seconds"], "communication": moved["gather"] + moved["reduce"],
        "host copies": moved["copy"],
    }  # fmt: skip
    assert rate["step_seconds"] == longest[bound] == max(longest.values())
    assert rate["serial_seconds"] == pytest.approx(sum(longest.values()))
    if seconds:
        assert rate["step_seconds"] == pytest.approx(seconds, rel=0.05)


def test_without_nvlink_collectives_and_copies_share_the_lanes(run_plan):
    keys = ["--options", "run.strategy=fsdp", "run.offload_frozen=true"]
    rate = run_plan(STAGE1, "--device", "a10", "--gpus", "8", "--link-gbs", "4", *keys)[1]["throughput"]
    moved = rate["transfers"]
    assert rate["bound"] == "communication" and rate["step_seconds"] == pytest.approx(sum(moved.values()))
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
    more = twice["steps"]["images"]["backward"] - once["steps"]["images"]["backward"]
    assert more == pytest.approx(once["always"]["learnt"])


def test_ways_to_run_the_published_stage_on_small_gpus(run_plan):
    """Vicuna-13B trains on GPUs of 24 and 40 GB; under ddp it does not fit the former."""
    for room, parts in ((24, [None, None, 2, 1, 2, 1]), (40, [8, 2, 1, 1, 1, 1])):
        status, told = run_plan(STAGE1, "--gpus", "8", "--memory-gb", str(room))
        ways = told["variants"]
        assert [(v["strategy"], v["offload"], v["checkpointing"]) for v in ways] == [
            ("ddp", False, False), ("ddp", False, True), ("fsdp", False, False), ("fsdp", False, True),
            ("fsdp", True, False), ("fsdp", True, True),
        ]  # fmt: skip
        assert [v["parts"] for v in ways] == parts and [v["chosen"] for v in ways] == [True] + 5 * [False]
        assert all(v["peak"] < 0.85 * room * 1e9 for v in ways if v["parts"])
        assert all(v["samples"] * v["parts"] == 32 and v["accumulate"] == v["parts"] for v in ways if v["parts"])
        assert ways[0]["uncut"] == told["memory"]["peak"] > room * 1e9 and status == 1
        (problem,) = told["problems"]
        assert "run.strategy=fsdp saves 21." in problem and "gradient_checkpointing=true saves 12." in problem
        more = " run.accum_grad_iters=2 with every batch size and batch_tokens divided by 2" if room == 24 else ""
        assert f"; --options run.strategy=fsdp{more} fits, at" in problem
        page = (tiny.ROOT / "docs" / "planning.md").read_text()
        for way in (way for way in ways if way["parts"]):
            keys = (way["strategy"], *("yes" if way[key] else "no" for key in ("offload", "checkpointing")))
            cells = f"{way['samples']:g} × {way['parts']} | {way['peak'] / 1e9:.1f} |"
            rows = [line for line in page.splitlines() if line.startswith("| " + " | ".join(keys))]
            assert cells in rows[0], f"docs/planning.md, {room} GB: {keys} is now {cells}"


def test_the_way_that_is_proposed_is_as_it_was_said(run_plan):
    way = run_plan(STAGE1, "--gpus", "8", "--memory-gb", "24")[1]["variants"][2]
    names = ("laion", "cc12m", "cc3m", "webvid", "audioset_sl", "freesound")
    sizes = [f"datasets.{name}.batch_size={256 // way['parts']}" for name in names]
    told = run_plan(STAGE1, "--gpus", "8", "--memory-gb", "24", "--options", *way["options"].split(), *sizes)[1]
    assert not told["problems"] and told["memory"]["peak"] == way["peak"]
    assert told["throughput"] == way["throughput"]


def test_nothing_fits(tree, run_plan):
    status, told = run_plan(tree, "--gpus", "2", "--memory-gb", "0.5")
    assert status == 1 and all(v["parts"] is None for v in told["variants"])
    assert any("take GPUs with more memory" in line for line in told["problems"])


def test_the_text_tells_rates_host_memory_and_compilation(capsys):
    keys = ["run.strategy=fsdp", "run.offload_frozen=true", "run.compile=inductor"]
    train.main(["--cfg-path", str(STAGE1), "--plan", "--gpus", "4", "--nodes", "2", "--options", *keys])
    said = capsys.readouterr().out
    assert "strategy fsdp, offload_frozen;" in said and "layers gathered" in said
    assert "Host memory of a node: 26.03 GB for a copy" in said
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
