"""Parts from outside the package, no line inside changed: trained, saved, resumed, planned, asked and talked to."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from chatbridge.common.checkpoint import find_latest, load_trainer, load_weights
from chatbridge.inference import ChatSession, Engine
from chatbridge.weights import WeightsError
from tests import tiny
from tests.inference.tools import SHORT, write_media

VISION = {"modalities": ["image", "video"], "encoder": tiny.EVA}

PARTS = {
    "projector": ("merging_projector", {"vision": VISION | {"projector": {"name": "merging_mlp"}}}, {}),
    "gridless encoder": (
        "colour_encoder",
        {"vision": VISION | {"encoder": {"name": "colours"}, "projector": {"name": "mlp", "hidden": 16}}},
        {},
    ),
    "language model with LoRA": ("lora", {}, {"name": "lora", "rank": 2}),
}
"""Part -> its plugin, the bridges that use it, and the keys of the language model."""

LEARN = {
    "projector": "bridges.vision.projector.inner.weight",
    "gridless encoder": "bridges.vision.projector.hidden.0.0.weight",
    "language model with LoRA": "llm.model.model.layers.0.self_attn.q_proj.up",
}


def tree_of(folder, part: str, **run) -> dict:
    plugin, bridges, llm = PARTS[part]
    tree = tiny.make_config(folder, "instruction", **{"max_steps": 4, "checkpoint_every": 2, **run})
    tree["plugins"] = [str(tiny.ROOT / "tests" / "plugins" / f"{plugin}.py")]
    tree["model"]["bridges"] |= copy.deepcopy(bridges)
    tree["model"]["llm"] |= llm
    return tree


def run(folder, tree, *more: str) -> int:
    return tiny.run(folder, tree, *more)


@pytest.fixture(scope="module", params=PARTS)
def trained(request, tmp_path_factory):
    """(the part, the folder, its configuration) of a run of four steps."""
    folder = tmp_path_factory.mktemp("part")
    tree = tree_of(folder, request.param)
    assert run(folder, tree) == 0
    return request.param, folder, tree


def test_it_learns_and_is_saved(trained):
    part, folder, _ = trained
    first, last = (load_weights(folder / "output" / "checkpoints" / f"step_{step:08d}") for step in (2, 4))
    assert first.keys() == last.keys()
    assert not torch.equal(first[LEARN[part]], last[LEARN[part]])
    assert not any(name.endswith("q_proj.weight") and name.startswith("llm.") for name in last), "the frozen stay out"


def test_it_goes_on_as_if_it_had_not_stopped(trained):
    _, folder, tree = trained
    again = copy.deepcopy(tree)
    again["run"] |= {"output_dir": str(folder / "again"), "stop_at": 2}
    assert run(folder, again) == 0
    again["run"] |= {"stop_at": None, "resume": "auto"}
    assert run(folder, again) == 0
    one, two = find_latest(folder / "output"), find_latest(folder / "again")
    assert one.name == two.name
    a, b = load_weights(one), load_weights(two)
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []
    for x, y in zip(*(load_trainer(f)["optimizers"] for f in (one, two)), strict=True):
        assert x["state"].keys() == y["state"].keys()
        for number, state in x["state"].items():
            assert all(torch.equal(value, y["state"][number][name]) for name, value in state.items())


def test_it_is_checked(trained):
    _, folder, tree = trained
    assert run(folder, tree, "--check") == 0


def test_it_is_asked(trained):
    _, folder, tree = trained
    asked = {name: tree[name] for name in ("plugins", "model", "processors", "task")} | {"validation": tree["datasets"]}
    asked = copy.deepcopy(asked)
    asked["model"]["weights"] = [str(find_latest(folder / "output"))]
    asked["run"] = {"runner": "evaluation", "output_dir": str(folder / "asked"), "device": "cpu", "max_new_tokens": 4}
    assert run(folder, asked) == 0
    assert json.loads((folder / "asked" / "scores.json").read_text())["chats"]["full"][""]["n"] == 12


def test_it_is_talked_to(trained):
    _, folder, tree = trained
    yaml, files = tiny.write_yaml(folder, tree, "talk.yaml"), write_media(folder / "files")
    engine = Engine.load(yaml, find_latest(folder / "output"), device="cpu")
    shape = engine.processors["video"].shape
    assert len(engine.encode([engine.medium(files["still.mp4"])])[0]) == engine.model.rows["video"](shape)
    session = ChatSession(engine, SHORT)
    session.say("what is it?", images=[files["a.png"]], videos=[files["still.mp4"]])
    again = ChatSession(engine, SHORT, reuse=False)
    again.say("what is it?", images=[files["a.png"]], videos=[files["still.mp4"]])
    assert str(session.say("and now?", images=[files["b.png"]])) == str(again.say("and now?", images=[files["b.png"]]))


def test_a_checkpoint_without_what_it_learnt_is_refused(trained):
    part, folder, tree = trained
    model = Engine.load(tiny.write_yaml(folder, tree, "plain.yaml"), device="cpu").model
    state = {name: tensor.clone() for name, tensor in model.trainable_state().items()}
    del state[LEARN[part]]
    with pytest.raises(WeightsError, match=r"missing \(1\): " + LEARN[part]):
        model.load_trainable(state, "it")


def test_it_is_planned(trained, capsys):
    """The plan runs the very parts: what learns is counted to the number, and text leaves as much room as in a run."""
    part, folder, tree = trained
    assert run(folder, tree, "--plan", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    saved = load_weights(find_latest(folder / "output"))
    assert sum(p["numbers"] for p in plan["model"]["parts"] if p["trainable"]) == sum(t.numel() for t in saved.values())
    shown = plan["data"]["datasets.chats"]["samples"][0]
    rows = {"projector": 3, "gridless encoder": 5, "language model with LoRA": 4}[part]
    assert f"<image x{rows}> and audio: <audio x4>" in shown["text"]
