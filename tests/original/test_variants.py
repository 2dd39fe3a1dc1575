"""`compat` chooses among a part's variants, wherever parts are named."""

from __future__ import annotations

import pytest

from chatbridge import register_all
from chatbridge.common.registry import MODELS, PROCESSORS, RUNNERS, TASKS
from chatbridge.common.schema import Binder, to_plain
from chatbridge.weights.pretrained import ProcessorSection

register_all()

PARTS = [
    (registry, name)
    for registry in (MODELS, PROCESSORS, TASKS, RUNNERS)
    for name in registry
    if registry.get(name).variants
]


def bound(registry, node):
    binder = Binder("run.yaml", ".")
    return binder.component(registry, node, "part"), binder.problems


def test_there_are_such_parts():
    assert [name for _, name in PARTS] == [
        "chatbridge", "audio", "image", "video", "alignment", "instruction", "training",
    ]  # fmt: skip


@pytest.mark.parametrize(("registry", "name"), PARTS, ids=[name for _, name in PARTS])
def test_a_node_names_the_variant(registry, name):
    entry = registry.get(name)
    needed = {"chatbridge": {"llm": {"path": "."}, "bridges": {}}, "training": {"output_dir": "out"}}.get(name, {})
    node = {registry.tag: name, **needed}
    for compat, chosen in {"default": entry, **entry.variants}.items():
        config, problems = bound(registry, node | {"compat": compat})
        assert not problems and type(config) is chosen.config and registry.target_of(config) is chosen.target
        assert issubclass(chosen.target, entry.target) and registry.node_of(config)["compat"] == compat
    assert type(bound(registry, node)[0]) is entry.config
    assert bound(registry, node | {"compat": "sometimes"})[1] == [
        "run.yaml: part.compat: 'sometimes' is not allowed; known: default, original"
    ]
    assert "did you mean 'compat'?" in bound(registry, node | {"compatt": "original"})[1][0]


def test_it_is_written_and_read_again():
    section = {"image": {"name": "image", "compat": "original"}, "audio": {"name": "audio"}}
    binder = Binder("config.json", ".")
    config = binder.dataclass(ProcessorSection, {"processors": section}, "")
    plain = to_plain(config)["processors"]
    assert {name: node["compat"] for name, node in plain.items()} == {"image": "original", "audio": "default"}
    assert binder.dataclass(ProcessorSection, {"processors": plain}, "") == config and not binder.problems


def test_parts_without_variants_do_not_have_the_key():
    """Its default stands in what earlier versions saved of parts that inherited it."""
    assert not bound(PROCESSORS, {"name": "caption_text", "compat": "default"})[1]
    _, problems = bound(PROCESSORS, {"name": "caption_text", "compat": "original"})
    assert "part.compat: unknown key" in problems[0]
