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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that the processes which share the suite end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
