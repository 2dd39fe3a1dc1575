"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import json

import pytest
import torch

import train
from chatbridge.processors.tokenizer import load_tokenizer
from tests import tiny
from tests.inference import tools as chat

SLOW_FILES = tuple(
    f"tests/{name}.py::"
    for name in (
        "common/test_checkpoint_damage", "common/test_run_folder", "dataset_prep/test_quickstart_report",
        "dataset_prep/test_world", "datasets/test_held_out", "datasets/test_mixed", "datasets/test_state",
        "demo/test_command", "demo/test_guard", "demo/test_page", "demo/test_trouble", "fuzz/test_fuzz",
        "planning/test_plan", "planning/test_simulator", "plugins/test_parts", "processors/test_device_preprocessing",
        "runners/test_ranks", "runners/test_resume", "runners/test_trouble", "runners/test_worker_memory",
        "serving/test_command", "serving/test_trouble", "weights/test_real_size", "web/test_connections",
    )
)  # fmt: skip
"""Files whose tests, short each, add up to many seconds: `make test-fast` leaves them out as a whole."""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that the processes which share the suite end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.nodeid.startswith(SLOW_FILES):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage walks over it again, here or in processes forked from here."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def usual_algorithms():
    """A run with `run.deterministic` in the test's own process leaves PyTorch filling all memory before its use."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tokenizer():
    """Vicuna's, shortened to 600 tokens."""
    return load_tokenizer(tiny.TOKENIZER)


@pytest.fixture
def run_plan(tmp_path, capsys):
    """Runs ``train.py --plan`` on a tree or file; returns (exit status, the plan as JSON)."""

    def run(tree, *arguments):
        capsys.readouterr()
        file = tiny.write_yaml(tmp_path, tree) if isinstance(tree, dict) else tree
        status = train.main(["--cfg-path", str(file), "--plan", "--json", *arguments])
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return status, json.loads(out.out)

    return run


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """A tiny model to talk to; what a test changes in it, it changes back."""
    return chat.make_engine(tmp_path_factory.mktemp("model"), max_txt_len=200)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Pictures, sounds and videos by name (`tests.inference.tools.write_media`), for reading only."""
    return chat.write_media(tmp_path_factory.mktemp("media"))
