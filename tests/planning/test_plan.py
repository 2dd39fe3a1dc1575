"""``train.py --plan``: what it counts, what it finds wrong, what it advises, and its exit status."""

from __future__ import annotations

import json

import pytest
import torch

import train
from chatbridge.common.config import load_config
from chatbridge.planning import PlanOptions, plan
from chatbridge.planning.report import to_json
from chatbridge.runners.assembly import Assembly
from tests import tiny

STAGE1 = tiny.ROOT / "train_configs" / "chatbridge_pretrain.yaml"
STAGE2 = tiny.ROOT / "instructiontuning_configs" / "instructtuning_ivaavchat_ckpt13.yaml"


@pytest.fixture(scope="module")
def stage1():
    """The published first stage on 8 GPUs of 24 GB."""
    return to_json(plan(STAGE1, PlanOptions(gpus=8, memory_gb=24)))


@pytest.mark.slow
def test_stage_1_of_the_published_run(stage1):
    missing = [line.split(":")[0] for line in stage1["missing"]]
    assert len(missing) == len(set(missing)) == 16 and "model.llm.path" in missing
    count = stage1["model"]
    assert count["trainable_parameters"] == 110_206_848 and count["parameters"] == 14_202_292_080
    assert len(count["trainable"]) == 260 and count["language_model"] == "the published architecture vicuna-13b-v0"
    parts = {(p["component"], p["dtype"]): p["numbers"] for p in count["parts"]}
    assert parts["llm", "float16"] == 13_015_874_560
    assert parts["bridges.vision.projector", "float32"] == 105_137_664 + 32 * 768 + 3_937_280
    assert parts["bridges.audio.adapter", "float32"] == 1_082_752
    assert stage1["memory"]["always"]["weights"] == count["parameter_bytes"]
    assert stage1["memory"]["always"]["optimizer"] == 2 * 4 * 110_206_848
    assert stage1["steps"]["laion"]["share"] == pytest.approx(200 / 220)
    assert stage1["steps"]["webvid"]["expected"]["media"]["video"]["steps"] == 4
    assert stage1["steps"]["freesound"]["expected"]["media"]["audio"]["steps"] == 2
    work = stage1["steps"]["laion"]["flops_per_rank"]
    # 39 blocks of width 1408 over 257 tokens, and the patches.
    block = 8 * 257 * 1408**2 + 4 * 257 * 1408 * 6144 + 4 * 257**2 * 1408
    assert work["bridges.vision.encoder"]["forward"] == 32 * (39 * block + 2 * 256 * 1408 * 3 * 14**2)
    assert work["bridges.vision.encoder"]["backward"] == 0
    # 13 billion weights but for the embeddings, twice, for 65 positions (the head's for 32, one padded).
    body, scores = 40 * (4 * 5120 * 5120 + 3 * 5120 * 13824), 65 * 5120 * 40
    head = (32 * 32 - 1) * 2 * 5120 * 32_001
    assert work["llm"]["forward"] == pytest.approx(32 * 65 * (2 * body + 4 * scores) + head, rel=1e-6)
    assert work["llm"]["backward"] == pytest.approx(32 * 65 * (2 * body + 10 * scores) + head, rel=1e-6)
    assert stage1["throughput"]["steps"] == 200_000


@pytest.mark.slow
def test_variants_of_the_published_run_on_small_gpus(stage1):
    """Vicuna-13B trains on GPUs of 24 GB; under ddp it does not fit there."""
    variants = stage1["variants"]
    assert [(v["strategy"], v["offload"], v["checkpointing"], v["parts"]) for v in variants] == [
        ("ddp", False, False, None), ("ddp", False, True, None), ("fsdp", False, False, 2), ("fsdp", False, True, 1),
        ("fsdp", True, False, 2), ("fsdp", True, True, 1),
    ]  # fmt: skip
    assert [v["chosen"] for v in variants] == [True] + 5 * [False]
    assert all(v["peak"] < 0.85 * 24e9 and v["samples"] * v["parts"] == 32 for v in variants if v["parts"])
    assert variants[0]["uncut"] == stage1["memory"]["peak"] > 24e9
    (problem,) = stage1["problems"]
    assert "run.strategy=fsdp saves 21." in problem and "gradient_checkpointing=true saves 12." in problem
    smaller = "run.accum_grad_iters=2 with every batch size and batch_tokens divided by 2"
    assert f"; --options run.strategy=fsdp {smaller} fits, at" in problem
    page = (tiny.ROOT / "docs" / "planning.md").read_text()
    for v in (v for v in variants if v["parts"]):
        keys = " | ".join((v["strategy"], *("yes" if v[key] else "no" for key in ("offload", "checkpointing"))))
        assert f"| {keys} | {v['samples']:g} × {v['parts']} | {v['peak'] / 1e9:.1f} |" in page


@pytest.mark.slow
def test_stage_2_of_the_published_run():
    found = plan(STAGE2, PlanOptions(device="h100", gpus=4, nodes=2))
    assert not found.problems and not found.variants
    assert found.parameters.trainable_parameters == 110_206_848
    assert len(found.datasets) == 14 and sum(d.share for d in found.datasets) == pytest.approx(1)
    both = next(d.expected for d in found.datasets if d.name == "valor_detail")
    assert set(both.media) == {"video", "audio"} and (both.samples, both.length) == (2, 221)
    assert both.supervised == 2 * (220 - 64)
    assert found.costs.throughput.steps == 10_000 and found.costs.peak < found.room == 80e9


def test_counts_are_those_of_the_model_that_is_built(tree, tmp_path, run_plan):
    tree["model"]["bridges"]["vision"]["encoder"]["dtype"] = "float16"
    tree["model"]["llm"]["dtype"] = "bfloat16"
    status, found = run_plan(tree, "--gpus", "2")
    assert status == 0 and found["ok"] and not found["missing"] and not found["problems"]
    model = Assembly(load_config(tmp_path / "run.yaml")).model()
    wanted = [{"name": n, "shape": list(p.shape)} for n, p in model.named_parameters() if p.requires_grad]
    assert found["model"]["trainable"] == wanted
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        parts = [part for part in found["model"]["parts"] if f"torch.{part['dtype']}" == str(dtype)]
        assert sum(p["numbers"] for p in parts) == sum(p.numel() for p in model.parameters() if p.dtype == dtype)
        assert sum(p["bytes"] for p in parts) == sum(p.nbytes for p in model.parameters() if p.dtype == dtype)
    (llm,) = [part for part in found["model"]["parts"] if part["component"] == "llm"]
    assert llm["bytes"] == sum(p.nbytes for p in model.llm.parameters()) and not llm["trainable"]
    assert sum(part["bytes"] for part in found["model"]["buffers"]) == sum(b.nbytes for b in model.buffers())
    again = plan(tmp_path / "run.yaml", PlanOptions(gpus=2), ["run.max_steps=60"])
    assert again.costs.peak == found["memory"]["peak"] and again.costs.throughput.steps == 60


def test_the_text(tmp_path, tree, capsys):
    keys = ["run.strategy=fsdp", "run.offload_frozen=true", "run.compile=inductor"]
    where = ["--plan", "--gpus", "2", "--nodes", "2", "--memory-gb", "1", "--options", *keys]
    assert train.main(["--cfg-path", str(tiny.write_yaml(tmp_path, tree)), *where]) == 1
    said = capsys.readouterr().out
    assert "bridges.vision.projector.qformer.bert.encoder.layer.*.attention.self.query.weight" in said
    assert "strategy fsdp, offload_frozen;" in said and "layers gathered" in said
    assert "Host memory of a node: 0.00 GB for a copy" in said and "GB locked for the offloaded pieces" in said
    assert "samples/s" in said and "minutes for 6 steps" in said and "(rates are assumed)" in said
    assert "at 200 GB/s between GPUs and 25 GB/s between nodes" in said and "from host memory" in said
    assert "bounds the step: all of it taken to overlap" in said
    assert "run.compile (inductor): layers are compiled when they first run" in said
    assert "*  fsdp      yes      no" in said and "take GPUs with more memory" in said
    assert said.rstrip().endswith(": would fail (1 errors, 0 missing paths)")


@pytest.mark.usefixtures("without_steps")
def test_everything_wrong_is_found_at_once(tree, tmp_path, run_plan):
    (tmp_path / "media" / "bad.json").write_text('[{"image_id": "0.jpg"}]')
    images = tree["datasets"]["images"]
    tree["datasets"]["bad"] = images | {"annotations": str(tmp_path / "media" / "bad.json")}
    tree["datasets"]["odd"] = images | {"batch_size": 3}
    tree["datasets"]["gone"] = images | {"annotations": str(tmp_path / "gone.json")}
    tree["datasets"]["far"] = images | {"kind": "tv-cap"}
    tree["processors"]["image"]["image_size"] = 56
    tree["model"]["bridges"]["audio"]["encoder"]["weights"] = str(tmp_path / "beats.pt")
    status, found = run_plan(tree, "--gpus", "2")
    problems, missing = "\n".join(found["problems"]), "\n".join(found["missing"])
    assert status == 1 and not found["ok"]
    assert "entry 0: lacks caption" in problems
    assert "datasets.odd.batch_size: 3 samples cannot be shared by 2" in problems
    assert "kind 'tv-cap' shows 'video', which needs a folder" in problems
    assert "encoder cannot take what processors.image gives, [3, 56, 56]" in problems
    assert "gone.json" in missing and "beats.pt" in missing and len(found["missing"]) == 2
    assert found["model"]["parameters"] > 0 and "datasets.sounds" in found["data"]
    tree["run"]["init_lrr"] = 1
    status, found = run_plan(tree)
    assert status == 1 and found["model"] is None and any("init_lrr" in line for line in found["problems"])


@pytest.mark.usefixtures("without_steps")
def test_where_the_language_model_s_architecture_is_found(tree, tmp_path, run_plan):
    folder = tree["model"]["llm"]["path"]
    tree["datasets"] = {}
    assert run_plan(tree, "--llm", "vicuna-7b-v0")[1]["model"]["language_model"] == folder + "/config.json"
    tree["model"]["llm"]["path"] = str(tmp_path / "my_model")
    status, found = run_plan(tree)
    assert status == 1 and found["model"] is None
    assert any("the mixture has no dataset" in line for line in found["problems"])
    assert any("my_model' has no config.json" in line and "--llm" in line for line in found["problems"])
    named = run_plan(tree, "--llm", "vicuna-7b-v1.1")[1]
    (llm,) = [part for part in named["model"]["parts"] if part["component"] == "llm"]
    assert llm["numbers"] == 6_738_415_616  # LLaMA-7B
    assert run_plan(tree, "--llm", folder)[1]["model"]["language_model"] == folder
    assert "did you mean 'vicuna-7b-v0'" in "".join(run_plan(tree, "--llm", "vicuna-7b-0")[1]["problems"])


def test_what_is_advised_fits(tree, run_plan):
    del tree["datasets"]["sounds"]
    status, found = run_plan(tree, "--gpus", "2")
    peak = found["memory"]["peak"]
    assert status == 0 and not found["variants"]
    status, found = run_plan(tree, "--gpus", "2", "--memory-gb", str(peak / 1e9 * 1.05))
    assert status == 0 and any("memory is tight" in line for line in found["warnings"])
    small = ["--gpus", "2", "--memory-gb", str((peak - 1e4) / 0.85 / 1e9)]
    (chosen,) = [v for v in run_plan(tree, *small)[1]["variants"] if v["chosen"]]
    assert chosen["parts"] == 2
    tree["datasets"]["images"]["batch_size"] //= 2
    status, found = run_plan(tree, *small, "--options", *chosen["options"].split())
    assert status == 0 and found["memory"]["peak"] == pytest.approx(chosen["peak"], rel=1e-6)
    assert found["throughput"]["step_seconds"] == chosen["throughput"]["step_seconds"]
    assert found["throughput"]["compute_seconds"] == pytest.approx(chosen["throughput"]["compute_seconds"], rel=0.1)


@pytest.mark.usefixtures("without_steps")
def test_types_that_do_not_match_and_a_tokenizer_of_a_larger_model(tree, tmp_path, run_plan):
    tree["run"]["amp"] = "bf16"
    tree["model"]["llm"]["dtype"] = "bfloat16"
    assert not any("converts" in line for line in run_plan(tree)[1]["warnings"])
    tree["model"]["llm"]["dtype"] = "float16"
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config | {"vocab_size": 500}))
    status, found = run_plan(tree)
    assert any("every step converts the language model" in line for line in found["warnings"])
    assert status == 1 and any("belong to different models" in line for line in found["problems"])


def test_an_evaluation_can_be_planned(tree, tmp_path, run_plan):
    tree["validation"] = tree.pop("datasets")
    tree["run"] = {"runner": "evaluation", "output_dir": str(tmp_path / "output"), "device": "cpu"}
    status, found = run_plan(tree)
    assert status == 0 and found["throughput"] is None and found["memory"]["always"]["optimizer"] == 0
    assert found["data"]["validation.images"]["entries"] == 12


def test_senseless_options(tree, tmp_path, capsys):
    file = str(tiny.write_yaml(tmp_path, tree))
    with pytest.raises(SystemExit):
        train.main(["--cfg-path", file, "--json"])
    links = [[f"--{link}-gbs", "0"] for link in ("link", "network", "host")]
    for wrong in (["--gpus", "0"], ["--nodes", "0"], ["--utilisation", "2"], ["--tflops", "-1"], *links):
        capsys.readouterr()
        assert train.main(["--cfg-path", file, "--plan", *wrong]) == 1
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.usefixtures("without_steps")
def test_weight_files_that_do_not_fit(tree, tmp_path, run_plan):
    model = Assembly(load_config(tiny.write_yaml(tmp_path, tree))).model()
    torch.save(model.bridges["vision"].encoder.state_dict(), tmp_path / "eva.pth")
    bridges = tree["model"]["bridges"]
    bridges["vision"]["encoder"]["weights"] = str(tmp_path / "eva.pth")
    assert run_plan(tree)[0] == 0
    bridges["vision"]["encoder"]["width"] = 64
    bridges["audio"]["encoder"]["weights"] = str(tmp_path / "eva.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "eva.pth").read_bytes()[:200])
    tree["model"]["weights"] = [str(tmp_path / "cut.pth")]
    for file in (tmp_path / "llm").glob("*.safetensors"):
        file.unlink()
    status, found = run_plan(tree)
    keys = ("bridges.vision.encoder.weights", "bridges.audio.encoder.weights", "weights[0]", "llm.path")
    assert status == 1
    for key in keys:
        assert any(line.startswith(f"model.{key}: ") for line in found["problems"])
