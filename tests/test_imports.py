"""Imports run one way only, downwards, as docs/design.md lays out the rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "chatbridge"

MAY_IMPORT = {
    "common": set(),
    "processors": {"common"},
    "conversation": {"common"},
    "weights": {"common"},
    "models": {"common", "weights"},
    "evaluation": {"common"},
    "report": {"common"},
    "datasets": {"common", "processors", "conversation"},
    "tasks": {"common", "processors", "conversation", "weights", "models", "datasets", "evaluation"},
    "runners": {
        "common",
        "processors",
        "conversation",
        "weights",
        "models",
        "datasets",
        "evaluation",
        "report",
        "tasks",
    },
    "original": {
        "common",
        "processors",
        "conversation",
        "weights",
        "models",
        "datasets",
        "tasks",
        "runners",
    },
    "planning": {
        "common",
        "processors",
        "conversation",
        "weights",
        "models",
        "datasets",
        "evaluation",
        "tasks",
        "runners",
    },
    "inference": {
        "common",
        "processors",
        "conversation",
        "weights",
        "models",
        "datasets",
        "evaluation",
        "tasks",
        "runners",
    },
    "web": set(),
    "serving": {
        "web",
        "common",
        "processors",
        "conversation",
        "weights",
        "models",
        "datasets",
        "evaluation",
        "tasks",
        "runners",
        "inference",
    },
    "demo": {
        "web",
        "common",
        "processors",
        "conversation",
        "weights",
        "models",
        "datasets",
        "evaluation",
        "tasks",
        "runners",
        "inference",
    },
}

LAZY = {"models/__init__.py": {"inference"}}
"""The one look upwards: names that LAVIS users expect there, imported when they are asked for (docs/chat.md)."""


def rooms_imported(file: Path) -> set[str]:
    """Rooms of the package that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write it in full"
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "chatbridge" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
                found.add(parts[1])
            assert parts[0] not in ("dataset_prep", "train", "demo", "tests"), f"{file} imports {name}"
    return found


@pytest.mark.parametrize("room", sorted(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()))
def test_room_imports_downwards_only(room):
    assert room in MAY_IMPORT, f"a new room, {room}: say above what it may import"
    for file in sorted((PACKAGE / room).rglob("*.py")):
        lazy = LAZY.get(file.relative_to(PACKAGE).as_posix(), set())
        wrong = rooms_imported(file) - MAY_IMPORT[room] - {room} - lazy
        assert not wrong, f"{file} imports from {sorted(wrong)}"


def test_the_check_itself_sees_a_wrong_import(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from chatbridge.runners import training\n")
    assert rooms_imported(file) == {"runners"}
