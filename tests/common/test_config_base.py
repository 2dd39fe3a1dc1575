"""`base:`: one YAML laid over another."""

from __future__ import annotations

import pytest
import yaml

import train
from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.config_files import read_config_file
from chatbridge.common.schema import ConfigError
from tests import tiny

BASE = """
paths: {weights: ../weights}
tokenizer: tokenizer.model
model: {llm: {path: "${paths.weights}/llm"}, bridges: {}}
task: {name: alignment, max_txt_len: 32}
run: {seed: 7, betas: [0.9, 0.95], output_dir: from_base}
"""


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, text: str):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return to_file


@pytest.mark.parametrize(
    ("below", "above", "together"),
    [
        ("{a: {b: 1, c: 2}}", "{a: {c: 3, d: 4}}", {"a": {"b": 1, "c": 3, "d": 4}}),
        ("{a: [1, 2], b: 1}", "{a: [3], b: {c: 1}}", {"a": [3], "b": {"c": 1}}),
        ("{a: {b: 1}, c: [1], d: 1}", "{a: null, c: null, d: null}", {"d": None}),
        ("{a: {b: 1}}", "{a: null, e: null}", {"e": None}),
        ("{a: '${b}', b: 1}", "{b: 2}", {"a": 2, "b": 2}),
        ("{task: {name: x, k: 1}}", "{task: {name: x, l: 2}}", {"task": {"name": "x", "k": 1, "l": 2}}),
        ("{task: {name: x, k: 1}}", "{task: {l: 2}}", {"task": {"name": "x", "k": 1, "l": 2}}),
        ("{task: {name: x, k: 1}}", "{task: {name: y, l: 2}}", {"task": {"name": "y", "l": 2}}),
        ("{run: {k: 1}}", "{run: {runner: evaluation}}", {"run": {"runner": "evaluation"}}),  # without a name: training
        ("{run: {k: 1}}", "{run: {runner: training}}", {"run": {"k": 1, "runner": "training"}}),
        ("{llm: {k: 1}}", "{llm: {name: mine}}", {"llm": {"name": "mine"}}),
        ("{x: {name: {k: 1}}}", "{x: {name: {l: 2}}}", {"x": {"name": {"k": 1, "l": 2}}}),
    ],
)
def test_what_merges_and_what_replaces(write, below, above, together):
    write("base.yaml", below)
    assert (
        read_config_file(write("run.yaml", "base: base.yaml\n" + yaml.safe_dump(yaml.safe_load(above)))).values
        == together
    )


def test_bases_of_bases_and_overrides(write):
    write("one.yaml", "{a: 1, b: 1, c: 1, d: 1}")
    write("two.yaml", "{base: one.yaml, b: 2, c: 2, d: 2}")
    tree = read_config_file(write("below/run.yaml", "{base: ../two.yaml, c: 3, d: 3}"), ["d=4", "e.f=5"])
    assert tree.values == {"a": 1, "b": 2, "c": 3, "d": 4, "e": {"f": 5}}
    assert [file.name for file in tree.files] == ["run.yaml", "two.yaml", "one.yaml"]


def test_paths_start_in_the_file_they_stand_in(write, tmp_path):
    register_all()
    write("models/base.yaml", BASE)
    run = write("runs/run.yaml", "{base: ../models/base.yaml, run: {output_dir: out}}")

    def looked_in(*options: str) -> dict[str, str]:
        return {m.key: m.looked_in[0] for m in load_config(run, options, defer_missing=True).awaited}

    tokenizer = str(tmp_path / "models" / "tokenizer.model")
    assert looked_in() == {"tokenizer": tokenizer, "model.llm.path": str(tmp_path / "weights" / "llm")}
    assert load_config(run, defer_missing=True).config.run.output_dir == str(tmp_path / "runs" / "out")
    # A reference starts where what it refers to stands.
    write("runs/run.yaml", "{base: ../models/base.yaml, paths: {weights: here}}")
    assert looked_in()["model.llm.path"] == str(tmp_path / "runs" / "here" / "llm")
    assert looked_in("paths.weights=there")["model.llm.path"] == str(tmp_path / "runs" / "there" / "llm")
    assert load_config(run, defer_missing=True).config.run.output_dir == str(tmp_path / "models" / "from_base")
    assert looked_in("tokenizer=mine")["tokenizer"] == str(tmp_path / "runs" / "mine")


def test_a_problem_names_the_file_that_its_key_stands_in(write):
    register_all()
    base = write("models/base.yaml", BASE.replace("seed: 7", "seeed: 7"))
    run = write("runs/run.yaml", "{base: ../models/base.yaml, run: {betas: [x]}, datasets: {a: {kind: ti-cap}}}")
    with pytest.raises(ConfigError) as caught:
        load_config(run, ["run.amp=fp17"])
    problems = caught.value.problems
    assert f"{base}: run.seeed: unknown key; did you mean 'seed'?" in problems
    assert any(line.startswith(f"{run}: run.betas[0]: expected float") for line in problems)
    assert any(line.startswith(f"{run}: run.amp: 'fp17' is not allowed") for line in problems)
    assert any(line.startswith(f"{run}: datasets.a.annotations: required key is missing") for line in problems)
    assert any(line.startswith(f"{base}: tokenizer: 'tokenizer.model' does not exist; looked for") for line in problems)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: none.yaml", "run.yaml: base: 'none.yaml' does not exist; looked for "),
        ("base: [a.yaml]", "run.yaml: base: expected the path of a YAML, found ['a.yaml']"),
        ("base: null", "run.yaml: base: expected the path of a YAML, found None"),
        ("base: .", "cannot be read as YAML: it is a folder"),
        ("base: run.yaml", "run.yaml: base: 'run.yaml' leads back to where it came from"),
        ("base: round.yaml", "round.yaml: base: 'run.yaml' leads back to where it came from"),
        ("base: broken.yaml", "broken.yaml: cannot be read as YAML"),
        ("base: list.yaml", "list.yaml: is empty or not a mapping of keys"),
        ("base: refers.yaml\na: {c: 1}", "run.yaml: a: "),
    ],
)
def test_bases_that_are_none(write, text, said):
    write("round.yaml", "base: run.yaml")
    write("broken.yaml", "a: [")
    write("list.yaml", "- a")
    write("refers.yaml", "{a: '${b}', b: {c: 0}}")
    with pytest.raises(ConfigError) as caught:
        read_config_file(write("run.yaml", text))
    (problem,) = caught.value.problems
    assert said in problem and "\n" not in problem


def test_the_command_line_names_no_base(write):
    with pytest.raises(ConfigError, match="--options base=a.yaml: a base is named in a file"):
        read_config_file(write("run.yaml", "a: 1"), ["base=a.yaml"])


def test_check_shows_both_together_and_a_run_writes_them_down_whole(tmp_path, capsys):
    base = tiny.make_config(tmp_path)
    run = base.pop("run")
    tiny.write_yaml(tmp_path, base, "base.yaml")
    model = {"bridges": {"vision": {"norm_trainable": True}}}
    file = tiny.write_yaml(tmp_path, {"base": "base.yaml", "run": run, "model": model})
    assert train.main(["--cfg-path", str(file), "--check"]) == 0
    said = capsys.readouterr().out
    assert f"# {file} over {tmp_path / 'base.yaml'}" in said and "norm_trainable: true" in said and "encoder:" in said
    whole = yaml.safe_load(load_config(file).to_yaml())
    vision = whole["model"]["bridges"]["vision"]
    assert "base" not in whole and vision["norm_trainable"] and vision["encoder"]["name"] == "eva_vit"
