"""Fixtures that several test files share."""

from __future__ import annotations

import json

import pytest

import train
from tests import tiny


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
