"""docs/configuration.md and the JSON Schema beside it say what the code declares, and the schema what it takes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import jsonschema
import pytest
import yaml

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.reference import reference
from tests.tiny import ROOT

SCHEMA = ROOT / "docs" / "configuration.schema.json"
SHIPPED = [file for file in sorted(ROOT.glob("*_configs/*.yaml")) if not file.stem.endswith("templates")]


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.slow
def test_reference_and_schema_are_up_to_date(tmp_path):
    # In a process of its own: other tests register parts that do not belong to the package.
    subprocess.run([sys.executable, "-m", "chatbridge.common.reference", str(tmp_path)], cwd=ROOT, check=True)
    for file in ("configuration.md", SCHEMA.name):
        fresh, written = ((folder / file).read_text(encoding="utf-8") for folder in (tmp_path, ROOT / "docs"))
        assert written == fresh, "run: python -m chatbridge.common.reference docs"


def test_every_key_has_a_help_text():
    register_all()
    for line in reference().splitlines():
        if line.startswith("| `"):
            assert line.split(" | ")[-1].strip(" |"), f"no help text: {line}"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_shipped_files_name_the_schema_and_keep_to_it(validator, file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(("# torchrun ", "# python "))
    named = lines[1].removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / named).resolve() == SCHEMA
    validator.validate(yaml.safe_load("\n".join(lines)))
    if file.parent.name != "model_configs":  # and so does what a run writes down, every default included
        register_all()
        validator.validate(yaml.safe_load(load_config(file, defer_missing=True).to_yaml()))


GOOD = {
    "model": {
        "llm": {"path": "${paths.a}"},
        "bridges": {"a": {"modalities": ["image"], "encoder": {"name": "eva_vit"}}},
    },
    "task": {"name": "alignment"},
    "datasets": {"a": {"kind": "ti-cap"}},
    "run": {"init_lr": 1e-4},
}


@pytest.mark.parametrize(
    ("place", "value", "good"),
    [
        ("run.seed", 1, True),
        ("run.seed", "${run.a}", True),
        ("run.seed", "one", False),
        ("run.seed", -1, False),
        ("run.seeed", 1, False),
        ("run.amp", True, True),
        ("run.amp", "bf16", True),
        ("run.amp", "bf17", False),
        ("run.runner", "evaluation", False),  # which has no init_lr
        ("run.runner", "evaluate", False),
        ("run.betas", "${a.b}", True),
        ("run.betas", [0.9, "x"], False),
        ("run.max_steps", None, True),
        ("run.lr_sched", "linear_warmup_cosine", False),
        ("task", "${a}", True),
        ("task", None, True),
        ("task.name", "alignmentt", False),
        ("task.end_sym", "x", True),
        ("task.prompt", {}, False),
        ("datasets.a.builder", "webdataset", True),
        ("datasets.a.shards", {"a.tar": 1.0}, True),
        ("datasets.a.shard", "a.tar", False),
        ("datasets.a.processors", {"image": {"name": "image", "image_size": 8}}, True),
        ("datasets.a.processors", {"image": {"name": "image", "image_sizes": 8}}, False),
        ("datasets.a.processors", {"image": {"name": "imagee"}}, False),
        ("model.bridges.a.encoder", {"width": 3}, True),  # of the part that a base names
        ("model.bridges.a.encoder.width", 0, False),
        ("model.bridges.a.encoder.name", "eva", False),
        ("model.arch", 5, False),
        ("mixture", {"mode": "random"}, True),
        ("mixture.modes", "random", False),
        ("bass", "a.yaml", False),
        ("base", "a.yaml", True),
    ],
)
def test_what_an_editor_accepts(validator, place, value, good):
    tree = copy.deepcopy(GOOD)
    *above, name = place.split(".")
    node = tree
    for part in above:
        node = node.setdefault(part, {})
    node[name] = value
    assert validator.is_valid(tree) == good
    if not good and isinstance(value, str):
        node[name] = "${some.key}"
        assert validator.is_valid(tree) == (name in ("seed", "amp", "runner", "lr_sched", "name"))


def test_parts_of_plugins_may_have_any_name_and_keys(validator):
    tree = copy.deepcopy(GOOD) | {"run": {"runner": "mine", "rounds": 3}, "task": {"name": "theirs", "x": 1}}
    assert not validator.is_valid(tree)
    tree["plugins"] = ["mine.py"]
    validator.validate(tree)
    tree["task"] = {"name": "alignment", "x": 1}
    assert not validator.is_valid(tree)
