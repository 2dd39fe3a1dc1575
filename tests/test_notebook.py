"""The notebook runs from its first cell to its last, on a tiny model of random weights."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from tests.inference.tools import write_config, write_media
from tests.tiny import ROOT

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=[file.stem for file in NOTEBOOKS])
def test_notebook(file, tmp_path, monkeypatch):
    files = write_media(tmp_path / "media")
    places = {"CONFIG": write_config(tmp_path), "IMAGE": files["a.png"], "SOUND": files["a.wav"]}
    for name, place in {**places, "VIDEO": files["loud.mp4"]}.items():
        monkeypatch.setenv(f"CHATBRIDGE_{name}", str(place))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.read(file, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before checking a notebook in"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [[*cell.get("outputs", [])] for cell in notebook.cells]
    shown = [kind for cell in outputs for output in cell for kind in output.get("data", {})]
    assert shown.count("image/png") == 5  # the picture, and attention over it, a video, a sound, and by query
    assert "text/html" in shown  # the player
    text = "".join(output.get("text", "") for cell in outputs for output in cell if output.get("name") == "stdout")
    assert "with the sound muted: " in text and "positions were read before)" in text
