"""Files of parts of one's own: where they may be, and what happens when they do not work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chatbridge.common.plugins import import_plugins
from chatbridge.common.schema import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def refused(folder: Path, *names: str) -> str:
    with pytest.raises(ConfigError) as caught:
        import_plugins(names, folder, "run.yaml")
    (problem,) = caught.value.problems
    assert problem.startswith("run.yaml: plugins: ") and "\n" not in problem
    return problem


def test_two_files_of_one_folder_each_once(folder):
    (folder / "plug_one.py").write_text("TIMES = []\nTIMES.append(1)")
    (folder / "plug_two.py").write_text("import plug_one")
    for _ in range(2):
        import_plugins(["plug_one.py", "plug_two.py", str(folder / "plug_two.py")], folder, "run.yaml")
    assert sys.modules["plug_one"].TIMES == [1] and sys.modules["plug_two"].plug_one is sys.modules["plug_one"]


@pytest.mark.parametrize("entry", ["", "."])
def test_a_file_in_the_working_folder(folder, monkeypatch, entry):
    monkeypatch.chdir(folder)
    (folder / "plug_here.py").write_text("DONE = True")
    sys.path.insert(0, entry or str(folder))
    import_plugins(["plug_here.py"], folder, "run.yaml")
    assert sys.modules["plug_here"].DONE


def test_a_link_to_a_file_and_a_module_by_name(folder):
    (folder / "real").mkdir()
    (folder / "real" / "plug_linked.py").write_text("")
    (folder / "link").symlink_to(folder / "real")
    import_plugins(["link/plug_linked.py", "real/plug_linked.py", "plug_linked"], folder, "run.yaml")


@pytest.mark.parametrize("name", ["json.py", "torch.py", "sys.py", "__main__.py", "chatbridge.py"])
def test_a_name_that_is_taken_by_another_module(folder, name):
    (folder / name).write_text("")
    said = refused(folder, name)
    assert f"a module called '{name[:-3]}' exists already" in said and "rename" in said


def test_the_same_name_in_two_folders(folder):
    for place in ("one", "two"):
        (folder / place).mkdir()
        (folder / place / "plug_same.py").write_text("")
    said = refused(folder, "one/plug_same.py", "two/plug_same.py")
    assert "two/plug_same.py" in said and str(folder / "one" / "plug_same.py") in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nimport no_such_module_anywhere", "No module named 'no_such_module_anywhere' (FILE, line 2)"),
        ("def f(:\n  pass", "SyntaxError: invalid syntax (plug_bad.py, line 1)"),
        ("x = 1\n\n1 / 0", "ZeroDivisionError: division by zero (FILE, line 3)"),
        ("raise KeyError('a\\nb')", "KeyError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f():\n  f()\nf()", "RecursionError"),
        ("assert False", "AssertionError (FILE, line 1)"),
        ("x = '\0'", "null bytes"),
        (
            "from chatbridge.common.registry import TASKS\nTASKS.register('alignment')(object)",
            "task 'alignment' is registered twice: by chatbridge.tasks.alignment.AlignmentTask and by builtins.object; "
            "choose another name for one of them (FILE, line 2)",
        ),
    ],
)
def test_a_file_that_fails_is_named_with_the_line(folder, text, said):
    file = folder / "plug_bad.py"
    file.write_text(text)
    assert said.replace("FILE", str(file)) in refused(folder, "plug_bad.py")


def test_a_file_that_is_not_text(folder):
    (folder / "plug_bytes.py").write_bytes(b"a = '\xff'\n")
    assert "plug_bytes.py" in refused(folder, "plug_bytes.py")
    (folder / "plug-in.py").write_text("")
    assert "rename plug-in.py" in refused(folder, "plug-in.py")
    (folder / "plug_folder.py").mkdir()
    assert "does not exist" in refused(folder, "plug_folder.py")
    assert "does not exist" in refused(folder, "n" * 300 + ".py")
