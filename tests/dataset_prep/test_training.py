"""What the commands write is what the runner trains on, in both stages, without a step in between."""

from __future__ import annotations

from pathlib import Path

import yaml

from dataset_prep import cc_sbu_laion, clotho, multis
from tests import tiny
from tests.dataset_prep import corpora
from tests.dataset_prep.corpora import run
from tests.dataset_prep.test_multis import own_files


def trained_on(folder: Path, tree: dict) -> set[str]:
    """Runs a tree; returns the datasets that its steps read."""
    assert tiny.run(folder, tree) == 0
    lines = tiny.json_lines(folder / "output" / "metrics.jsonl")
    assert not (folder / "output" / "ledger.jsonl").exists()
    return {line["dataset"] for line in lines if line.get("split") == "train"}


def test_stage_1_on_prepared_corpora(tmp_path):
    members = {}
    for n in range(6):
        members |= {f"{n}.jpg": corpora.jpeg_bytes((40 * n, 0, 0)), f"{n}.txt": f"red of strength {n}".encode()}
    corpora.write_tar(tmp_path / "dataset" / "00000.tar", members)
    run(cc_sbu_laion, tmp_path / "dataset", "--out", tmp_path / "data" / "cc_sbu")
    sounds = corpora.odd_sounds(tmp_path / "development")
    rows = [{"file_name": path.name, "caption_1": "a tone", "caption_2": "one tone"} for path in sounds]
    corpora.write_csv(tmp_path / "clotho_captions_development.csv", rows)
    run(clotho, tmp_path, "--out", tmp_path / "data" / "clotho")
    tree = tiny.make_config(tmp_path, max_steps=4) | {"mixture": {"mode": "round_robin"}}
    folder = tmp_path / "data"
    tree["datasets"] = {
        "cc_sbu": {"builder": "webdataset", "folder": str(folder / "cc_sbu"), "kind": "ti-cap", "batch_size": 2},
        "clotho": {
            "annotations": str(folder / "clotho" / "annotations.json"),
            "kind": "ta-cap",
            "media": {"audio": str(folder / "clotho" / "audio")},
            "batch_size": 2,
        },
    }
    assert trained_on(tmp_path, tree) == {"cc_sbu", "clotho"}


def test_stage_2_on_the_mixture(tmp_path):
    own_files(tmp_path / "downloads")
    run(multis, tmp_path / "downloads", "--out", tmp_path / "data")
    made = yaml.safe_load((tmp_path / "data" / "mixture.yaml").read_text(encoding="utf-8"))["datasets"]
    tree = tiny.make_config(tmp_path, "instruction", max_steps=len(made)) | {"mixture": {"mode": "round_robin"}}
    tree["paths"] = {"data": str(tmp_path / "data")}
    tree["datasets"] = {name: {**keys, "batch_size": 2} for name, keys in made.items()}
    assert trained_on(tmp_path, tree) == set(made)
