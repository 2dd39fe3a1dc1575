"""Fixtures of the tests of planning."""

from __future__ import annotations

from collections import Counter

import pytest

from chatbridge import register_all
from chatbridge.planning.recorder import ENCODE
from chatbridge.planning.simulator import Simulator, Step, Update
from tests import tiny


@pytest.fixture(autouse=True, scope="session")
def registered():
    register_all()


@pytest.fixture
def tree(tmp_path):
    return tiny.make_config(tmp_path)


@pytest.fixture
def without_steps(monkeypatch):
    """Steps take nothing: for what a plan says of configuration, files and data."""
    monkeypatch.setattr(Simulator, "step", lambda *_: Step({ENCODE: 0}, 0, 0, Counter()))
    monkeypatch.setattr(Simulator, "update", lambda *_: Update())
