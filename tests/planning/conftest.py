"""Fixtures of the tests of planning."""

from __future__ import annotations

import pytest

from chatbridge import register_all
from chatbridge.planning import run_plan as run_plan_module
from tests import tiny


@pytest.fixture(autouse=True, scope="session")
def registered():
    register_all()


@pytest.fixture
def tree(tmp_path):
    return tiny.make_config(tmp_path)


@pytest.fixture
def without_steps(monkeypatch):
    """Plans simulate nothing: for what they say of configuration, files and data."""

    def batches_alone(result, config, found, _):
        result.datasets = run_plan_module._batches(result, config, found)(1)
        result.work = {dataset.name: {} for dataset in result.datasets}

    monkeypatch.setattr(run_plan_module, "_simulate", batches_alone)
