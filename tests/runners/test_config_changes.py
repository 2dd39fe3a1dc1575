"""Whether a run may go on is said where its keys are declared."""

from __future__ import annotations

import pytest

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.schema import to_plain
from chatbridge.runners.resume import config_changes
from tests import tiny


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    register_all()
    folder = tmp_path_factory.mktemp("run")
    return tiny.write_yaml(folder, tiny.make_config(folder))


@pytest.mark.parametrize(
    ("option", "free"),
    [
        ("run.init_lr=0.5", False),
        ("run.amp=bf16", False),
        ("run.log_every=7", True),
        ("run.output_dir=elsewhere", True),
        ("model.llm.gradient_checkpointing=true", True),
        ("model.share_perceivers=true", False),
        ("model.bridges.audio.perceiver.dropout=0.5", False),
        ("datasets.images.cache_mb=5", True),
        ("datasets.images.media.image=.", True),
        ("datasets.images.limit=5", False),
        ("datasets.images.processors.image={name: image, image_size: 14}", False),
        ("paths.data=.", True),
        ("plugins=[]", True),
        ("mixture.mode=round_robin", False),
        ("model.compat=original", False),
        ("task.compat=original", False),
        ("processors.audio.compat=original", False),
        ("run.compat=original", False),
    ],
)
def test_what_may_differ(file, option, free):
    before = to_plain(load_config(file).config)
    found = config_changes(before, load_config(file, [option]).config, {}, {})
    assert (not found) == free
    assert all(key.startswith(option.partition("=")[0]) for key in found)


def test_parts_that_came_and_went(file):
    now = load_config(file).config
    before = to_plain(now)
    before["datasets"]["gone"] = before["datasets"].pop("sounds")
    before["run"]["of_an_older_version"] = 1
    found = config_changes(before, now, {}, {})
    assert {key.split(".")[1] for key in found} == {"gone", "sounds"}


@pytest.mark.parametrize(("value", "same"), [("device", True), ("worker", False)])
def test_the_earlier_name_of_a_key(file, value, same):
    """In checkpoints of before, preprocess_on is called finish."""
    now = load_config(file, [f"processors.image.preprocess_on={value}"]).config
    before = to_plain(now)
    del before["processors"]["image"]["preprocess_on"]
    before["processors"]["image"]["finish"] = "device"
    found = {} if same else {"processors.image.preprocess_on": "'device' -> 'worker'"}
    assert config_changes(before, now, {}, {}) == found
