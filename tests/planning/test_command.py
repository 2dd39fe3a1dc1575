"""``train.py --plan``: what it counts, what it finds wrong, what it shows, and its exit status."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import train
from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.devices import device
from chatbridge.planning import PlanOptions, plan
from chatbridge.planning.costs import CONTEXT_BYTES
from chatbridge.planning.inventory import inventory, meta_model
from chatbridge.planning.steps import Work
from chatbridge.planning.throughput import seconds
from chatbridge.runners.assembly import Assembly
from tests import tiny

STAGE1 = tiny.ROOT / "train_configs" / "chatbridge_pretrain.yaml"
STAGE2 = tiny.ROOT / "instructiontuning_configs" / "instructtuning_ivaavchat_ckpt13.yaml"


@pytest.fixture(autouse=True)
def registered():
    register_all()


@pytest.fixture
def tree(tmp_path):
    return tiny.make_config(tmp_path)


def test_counts_are_those_of_the_model_that_is_built(tree, tmp_path, run_plan):
    tree["model"]["bridges"]["vision"]["encoder"]["dtype"] = "float16"
    tree["model"]["llm"]["dtype"] = "bfloat16"
    status, told = run_plan(tree)
    assert status == 0 and told["ok"] and not told["missing"] and not told["problems"]
    model = Assembly(load_config(tmp_path / "run.yaml")).model()
    assert told["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    wanted = [{"name": n, "shape": list(p.shape)} for n, p in model.named_parameters() if p.requires_grad]
    assert told["model"]["trainable"] == wanted
    by_type: dict[str, int] = {}
    for part in told["model"]["parts"]:
        by_type[part["dtype"]] = by_type.get(part["dtype"], 0) + part["bytes"]
    for name, dtype in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        assert by_type[name] == sum(p.numel() * p.element_size() for p in model.parameters() if p.dtype == dtype)
    (llm,) = [part for part in told["model"]["parts"] if part["component"] == "llm"]
    assert llm["bytes"] == sum(p.numel() * 2 for p in model.llm.parameters()) and not llm["trainable"]
    assert told["model"]["parts"] == [vars(p) for p in inventory(model).parts]
    assert sum(b["bytes"] for b in told["model"]["buffers"]) == sum(
        b.numel() * b.element_size() for b in model.buffers()
    )


def test_stage_1_of_the_published_run(run_plan):
    status, told = run_plan(STAGE1)
    assert status == 1 and not told["problems"]
    missing = [line.split(":")[0] for line in told["missing"]]
    assert len(missing) == len(set(missing)) == 16 and "model.llm.path" in missing
    assert told["model"]["trainable_parameters"] == 110_206_848
    assert told["model"]["parameters"] == 14_202_292_080
    parts = {(p["component"], p["dtype"]): p for p in told["model"]["parts"]}
    assert parts["llm", "float16"]["numbers"] == 13_015_874_560
    assert parts["bridges.vision.projector", "float32"]["numbers"] == 105_137_664 + 32 * 768 + 3_937_280
    assert parts["bridges.audio.adapter", "float32"]["numbers"] == 1_082_752
    assert told["memory"]["always"]["weights"] == told["model"]["parameter_bytes"]
    assert told["memory"]["always"]["optimiser"] == 2 * 4 * 110_206_848
    assert told["steps"]["laion"]["share"] == pytest.approx(200 / 220)
    assert told["steps"]["webvid"]["expected"]["media"]["video"]["steps"] == 4
    assert told["steps"]["freesound"]["expected"]["media"]["audio"]["steps"] == 2
    work = told["steps"]["laion"]["flops_per_rank"]
    # 39 blocks of width 1408 over 257 tokens, and the patches.
    block = 8 * 257 * 1408**2 + 4 * 257 * 1408 * 6144 + 4 * 257**2 * 1408
    assert work["bridges.vision.encoder"]["forward"] == 32 * (39 * block + 2 * 256 * 1408 * 3 * 14**2)
    assert work["bridges.vision.encoder"]["backward"] == 0
    # 13 billion weights but for the embeddings, twice, for 65 positions (the head's for 32, one padded).
    body, scores = 40 * (4 * 5120 * 5120 + 3 * 5120 * 13824), 65 * 5120 * 40
    head = (32 * 32 - 1) * 2 * 5120 * 32_001
    assert work["llm"]["forward"] == pytest.approx(32 * 65 * (2 * body + 4 * scores) + head, rel=1e-6)
    assert work["llm"]["backward"] == pytest.approx(32 * 65 * (2 * body + 10 * scores) + head, rel=1e-6)
    assert told["throughput"]["steps"] == 200_000


def test_stage_2_of_the_published_run(run_plan):
    status, told = run_plan(STAGE2, "--device", "h100", "--gpus", "4", "--nodes", "2")
    assert status == 1 and not told["problems"]
    assert told["model"]["trainable_parameters"] == 110_206_848
    assert len(told["steps"]) == 14 and sum(s["share"] for s in told["steps"].values()) == pytest.approx(1)
    both = told["steps"]["valor_detail"]["expected"]
    assert set(both["media"]) == {"video", "audio"} and both["samples"] == 2 and both["length"] == 221
    assert both["supervised"] == 2 * (220 - 64)
    assert told["throughput"]["steps"] == 10_000
    assert told["memory"]["peak"] < told["memory"]["room"] == 80e9


def test_the_text_says_what_the_json_does(tree, tmp_path, capsys):
    file = str(tiny.write_yaml(tmp_path, tree))
    assert train.main(["--cfg-path", file, "--plan"]) == 0
    said = capsys.readouterr().out
    model = Assembly(load_config(file)).model()
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert f"in {len(names)} tensors" in said
    assert "bridges.vision.projector.qformer.bert.encoder.layer.{0-1}.attention.self.query.weight" in said
    assert "samples/s" in said and "minutes for 6 steps" in said
    assert said.rstrip().endswith(": can start")


def test_the_folded_list_leaves_nothing_out():
    model, source = meta_model(load_config(STAGE1).config.model)
    found = inventory(model, source)
    assert sum(times for *_, times in found.folded()) == len(found.trainable) == 260
    folded = {name: times for name, _, times in found.folded()}
    layer = "bridges.vision.projector.qformer.bert.encoder.layer"
    assert folded[layer + ".{0,2,4,6,8,10}.crossattention.self.key.weight"] == 6
    assert folded[layer + ".{0-11}.output_query.dense.weight"] == 12
    assert source == "the published architecture vicuna-13b-v0"


def test_everything_wrong_is_told_at_once(tree, tmp_path, run_plan):
    (tmp_path / "media" / "bad.json").write_text('[{"image_id": "0.jpg"}]')
    tree["datasets"]["bad"] = tree["datasets"]["images"] | {"annotations": str(tmp_path / "media" / "bad.json")}
    tree["datasets"]["odd"] = tree["datasets"]["images"] | {"batch_size": 3}
    tree["datasets"]["gone"] = tree["datasets"]["images"] | {"annotations": str(tmp_path / "gone.json")}
    tree["datasets"]["far"] = tree["datasets"]["images"] | {"kind": "tv-cap"}
    tree["processors"]["image"]["image_size"] = 56
    tree["model"]["bridges"]["audio"]["encoder"]["weights"] = str(tmp_path / "beats.pt")
    status, told = run_plan(tree, "--gpus", "2")
    problems, missing = "\n".join(told["problems"]), "\n".join(told["missing"])
    assert status == 1 and not told["ok"]
    assert "entry 0: lacks caption" in problems
    assert "datasets.odd.batch_size: 3 samples cannot be shared by 2" in problems
    assert "kind 'tv-cap' shows 'video', which needs a folder" in problems
    assert "encoder cannot take what processors.image gives, [3, 56, 56]" in problems
    assert "gone.json" in missing and "beats.pt" in missing and len(told["missing"]) == 2
    assert told["model"]["parameters"] > 0 and "datasets.sounds" in told["data"]


def test_a_configuration_that_cannot_be_bound(tree, tmp_path, run_plan):
    tree["run"]["init_lrr"] = 1
    tree["model"]["bridges"]["audio"]["encoder"]["name"] = "beast"
    tree["datasets"]["images"]["annotations"] = str(tmp_path / "gone.json")
    status, told = run_plan(tree)
    said = "\n".join(told["problems"])
    assert status == 1 and told["model"] is None
    assert "init_lrr" in said and "beast" in said and "gone.json" in said


def test_where_the_language_model_s_architecture_is_found(tree, tmp_path, run_plan):
    folder = tree["model"]["llm"]["path"]
    assert run_plan(tree, "--llm", "vicuna-7b-v0")[1]["model"]["language_model"] == folder + "/config.json"
    tree["model"]["llm"]["path"] = str(tmp_path / "my_model")
    status, told = run_plan(tree)
    assert status == 1 and told["model"] is None
    assert any("my_model' has no config.json" in line and "--llm" in line for line in told["problems"])
    named = run_plan(tree, "--llm", "vicuna-7b-v1.1")[1]
    (llm,) = [part for part in named["model"]["parts"] if part["component"] == "llm"]
    assert llm["numbers"] == 6_738_415_616  # LLaMA-7B
    assert run_plan(tree, "--llm", folder)[1]["model"]["language_model"] == folder
    assert "did you mean 'vicuna-7b-v0'" in "".join(run_plan(tree, "--llm", "vicuna-7b-0")[1]["problems"])


def test_too_little_memory_is_a_failure(tree, run_plan):
    status, told = run_plan(tree)
    peak = told["memory"]["peak"]
    worst = max(step["peak"] for step in told["memory"]["steps"].values())
    always = told["memory"]["always"]
    parts = ("weights", "buffers", "optimiser", "buckets")
    assert peak == pytest.approx(sum(always[part] for part in parts) + worst + CONTEXT_BYTES)
    assert status == 0
    status, told = run_plan(tree, "--memory-gb", str(peak / 1e9 * 0.99))
    assert status == 1 and any("the run does not fit" in line for line in told["problems"])
    status, told = run_plan(tree, "--memory-gb", str(peak / 1e9 * 1.05))
    assert status == 0 and any("memory is tight" in line for line in told["warnings"])


def test_types_that_do_not_match_are_told(tree, run_plan):
    tree["run"]["amp"] = "bf16"
    tree["model"]["llm"]["dtype"] = "float16"
    assert any("every step converts the language model" in line for line in run_plan(tree)[1]["warnings"])
    tree["model"]["llm"]["dtype"] = "bfloat16"
    assert not any("converts" in line for line in run_plan(tree)[1]["warnings"])


def test_a_tokenizer_of_a_larger_model(tree, tmp_path, run_plan):
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config | {"vocab_size": 500}))
    status, told = run_plan(tree)
    assert status == 1 and any("belong to different models" in line for line in told["problems"])


def test_a_run_with_nothing_to_learn_or_to_read(tree, run_plan):
    tree["datasets"] = {}
    status, told = run_plan(tree)
    assert status == 1 and any("the mixture has no dataset" in line for line in told["problems"])


def test_an_evaluation_can_be_planned(tree, tmp_path, run_plan):
    tree["validation"] = tree.pop("datasets")
    tree["run"] = {"runner": "evaluation", "output_dir": str(tmp_path / "output"), "device": "cpu"}
    status, told = run_plan(tree)
    assert status == 0 and told["throughput"] is None and told["memory"]["always"]["optimiser"] == 0
    assert told["data"]["validation.images"]["entries"] == 12


def test_json_without_a_plan_and_senseless_options(tree, tmp_path, capsys):
    file = str(tiny.write_yaml(tmp_path, tree))
    with pytest.raises(SystemExit):
        train.main(["--cfg-path", file, "--json"])
    for wrong in (["--gpus", "0"], ["--utilisation", "2"], ["--tflops", "-1"]):
        capsys.readouterr()
        assert train.main(["--cfg-path", file, "--plan", *wrong]) == 1
        assert capsys.readouterr().err.startswith("error: ")


def test_the_function_says_what_the_command_does(tree, tmp_path, run_plan):
    _, told = run_plan(tree, "--gpus", "2", "--device", "h200")
    found = plan(tmp_path / "run.yaml", PlanOptions(device="h200", gpus=2))
    assert found.ok and found.peak == told["memory"]["peak"]
    assert found.throughput.days == told["throughput"]["days"]
    overridden = plan(tmp_path / "run.yaml", PlanOptions(), ["run.max_steps=60"])
    assert overridden.throughput.steps == 60


def test_gradients_of_earlier_batches_stay_while_accumulating(tree, run_plan):
    once = run_plan(tree)[1]
    tree["run"]["accum_grad_iters"] = 2
    twice = run_plan(tree)[1]
    more = [t["memory"]["steps"]["images"]["moments"]["loss"] for t in (once, twice)]
    assert more[1] - more[0] == once["memory"]["always"]["gradients"]
    assert twice["throughput"]["step_seconds"] == pytest.approx(2 * once["throughput"]["step_seconds"])
    assert twice["throughput"]["samples_per_second"] == pytest.approx(once["throughput"]["samples_per_second"])


def test_seconds_follow_peak_and_utilisation():
    work = {"a": Work(1e12, 2e12), "b": Work(1e12, 0.0, single=1e12)}
    given = device("h100", tflops=100, utilisation=0.5)
    assert seconds(work, given) == pytest.approx((3 / 100 + 1 / 67) / 0.5)
    assert seconds(work, replace(given, utilisation=1.0)) == pytest.approx(3 / 100 + 1 / 67)


def test_weight_files_that_do_not_fit(tree, tmp_path, run_plan):
    model = Assembly(load_config(tiny.write_yaml(tmp_path, tree))).model()
    torch.save(model.bridges["vision"].encoder.state_dict(), tmp_path / "eva.pth")
    tree["model"]["bridges"]["vision"]["encoder"]["weights"] = str(tmp_path / "eva.pth")
    assert run_plan(tree)[0] == 0
    tree["model"]["bridges"]["vision"]["encoder"]["width"] = 64
    tree["model"]["bridges"]["audio"]["encoder"]["weights"] = str(tmp_path / "eva.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "eva.pth").read_bytes()[:200])
    tree["model"]["weights"] = [str(tmp_path / "cut.pth")]
    status, told = run_plan(tree)
    said = "\n".join(told["problems"])
    assert status == 1
    for key in ("bridges.vision.encoder.weights", "bridges.audio.encoder.weights", "weights[0]"):
        assert f"model.{key}: " in said
    for file in (tmp_path / "llm").glob("*.safetensors"):
        file.unlink()
    assert any(line.startswith("model.llm.path: ") for line in run_plan(tree)[1]["problems"])
