"""Golden cases: numbers computed with the original code (format and tolerances: tests/golden, README of set A).

``pytest tests/parity --golden-dir DIR`` runs the same functions over any other folder of that format. A test takes

* ``case``, with ``@pytest.mark.golden("beats_*")``: run once per file that the glob matches;
* ``golden("name")``: one case by its name; ``golden_json("name")``: only its sidecar.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from chatbridge.processors.tokenizer import load_tokenizer

DEFAULT_DIR = Path(__file__).parent.parent / "golden"


@dataclass(frozen=True)
class Case:
    """One golden case: a JSON sidecar, and the tensors beside it if it has any."""

    folder: Path
    name: str

    @cached_property
    def info(self) -> dict:
        return json.loads((self.folder / f"{self.name}.json").read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / f"{self.name}.safetensors")

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under ``prefix/``, without it."""
        return {k.removeprefix(prefix + "/"): v for k, v in self.tensors.items() if k.startswith(prefix + "/")}

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.part("weights")

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.part("inputs")

    @property
    def outputs(self) -> dict[str, Tensor]:
        return self.part("outputs")


def pytest_addoption(parser):
    parser.addoption("--golden-dir", default=None, help="folder of golden cases (default: tests/golden)")


def pytest_configure(config):
    config.addinivalue_line("markers", "golden(glob): run once per golden case whose name matches the glob")


def _folder(config) -> Path:
    given = config.getoption("--golden-dir", default=None)
    return Path(given).resolve() if given else DEFAULT_DIR


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None or "case" not in metafunc.fixturenames:
        return
    from tests.parity.derived import derived_cases  # which builds upon these cases

    folder = _folder(metafunc.config)
    names = sorted({p.stem for glob in marker.args for p in folder.glob(f"{glob}.json")})
    if not names and folder == DEFAULT_DIR:
        raise pytest.UsageError(f"no golden case matches {marker.args} in {folder}")
    cases = [Case(folder, name) for name in names]
    cases += [case for case in derived_cases(folder) if any(fnmatch(case.name, glob) for glob in marker.args)]
    metafunc.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="session")
def golden_dir(request) -> Path:
    return _folder(request.config)


@pytest.fixture(scope="session")
def tokenizer(golden_dir):
    return load_tokenizer(golden_dir / "tokenizer")


@pytest.fixture(scope="session")
def golden(golden_dir):
    """``golden(name) -> Case``; a folder given on the command line may lack a case, the default one may not."""

    def load(name: str) -> Case:
        if not (golden_dir / f"{name}.json").exists():
            message = f"no golden case '{name}' in {golden_dir}"
            pytest.fail(message) if golden_dir == DEFAULT_DIR else pytest.skip(message)
        return Case(golden_dir, name)

    return load


@pytest.fixture(scope="session")
def golden_json(golden):
    """``golden_json(name) -> dict``: the sidecar alone."""
    return lambda name: golden(name).info
