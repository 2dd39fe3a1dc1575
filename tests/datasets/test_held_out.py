"""Held-out data that cannot be read: validation goes on past it, an evaluation writes down why it has no answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatbridge.datasets import Collator
from chatbridge.datasets.held_out import HeldOut
from chatbridge.evaluation.metrics import ExactMatch, Prediction, Score, exact_match, normalise
from chatbridge.evaluation.rows import RowFile, read_rows
from chatbridge.evaluation.scores import Scores, score
from chatbridge.runners.evaluation import EvaluationRunner
from tests import tiny
from tests.datasets.tools import folder_set, write_folder
from tests.processes import Run
from tests.tiny import json_lines


def damaged(tmp_path: Path, *pictures: int) -> dict:
    """A training run whose validation set has damaged pictures of these numbers."""
    tree = tiny.make_config(tmp_path, max_steps=4, validate_every=2)
    held = tmp_path / "held"
    held.mkdir()
    for i in range(12):
        data = (tmp_path / "media" / f"{i}.jpg").read_bytes()
        (held / f"{i}.jpg").write_bytes(data[:300] if i in pictures else data)
    (held / "list.json").write_text((tmp_path / "media" / "images.json").read_text())
    tree["validation"] = {"held": {
        "annotations": str(held / "list.json"), "kind": "ti-cap", "media": {"image": str(held)}, "batch_size": 4,
    }}  # fmt: skip
    return tree


def evaluation(tree: dict, tmp_path: Path, **run) -> dict:
    tree = {name: value for name, value in tree.items() if name != "datasets"}
    tree["run"] = {"runner": "evaluation", "output_dir": str(tmp_path / "asked"), "device": "cpu", "threads": 1}
    tree["run"] |= {"max_new_tokens": 3, **run}
    return tree


def main(tree: dict, tmp_path: Path) -> int:
    return tiny.run(tmp_path, tree)


def started(tree: dict, tmp_path: Path, world: int = 1) -> Run:
    return Run(tmp_path / "logs", ["--cfg-path", str(tiny.write_yaml(tmp_path, tree))], world)


# Validation


@pytest.mark.parametrize("bad", [[0], [3, 11], [0, 1, 2, 3], list(range(1, 12))])
def test_validation_passes_over_what_it_cannot_read(tmp_path, capsys, bad):
    tree = damaged(tmp_path, *bad)
    assert main(tree, tmp_path) == 0
    said = capsys.readouterr().err
    assert said.count("is left out: ") == len(bad), "each is named once, not at every validation"
    assert said.count(f"validation.held: {len(bad)} samples could not be read and are not in its loss") == 2
    rows = [row for row in json_lines(tmp_path / "output" / "metrics.jsonl") if row["split"] == "validation"]
    assert [(row["step"], row["unreadable"]) for row in rows] == [(2, len(bad)), (4, len(bad))]
    file = tmp_path / "held" / "list.json"
    file.write_text(json.dumps([entry for i, entry in enumerate(json.loads(file.read_text())) if i not in bad]))
    tree["run"]["output_dir"] = str(tmp_path / "without")
    assert main(tree, tmp_path) == 0
    without = [row for row in json_lines(tmp_path / "without" / "metrics.jsonl") if row["split"] == "validation"]
    assert [row["loss"] for row in without] == pytest.approx([row["loss"] for row in rows], rel=1e-5)
    assert not any("unreadable" in row for row in without)


def test_a_set_of_which_nothing_can_be_read_ends_no_run(tmp_path, capsys):
    assert main(damaged(tmp_path, *range(12)), tmp_path) == 0
    assert "12 samples could not be read" in capsys.readouterr().err
    rows = json_lines(tmp_path / "output" / "metrics.jsonl")
    assert rows[-1]["step"] == 4 and all(row["split"] == "train" for row in rows)


def test_held_out_annotations_are_opened_before_the_first_step(tmp_path, capsys):
    tree = damaged(tmp_path)
    (tmp_path / "held" / "list.json").write_text('[{"image_id": "0.jpg"}]')
    assert main(tree, tmp_path) == 1
    assert "list.json: entry 0: lacks caption" in capsys.readouterr().err
    assert not (tmp_path / "output" / "metrics.jsonl").exists()


@pytest.mark.parametrize("bad", [[], [0], [0, 2, 4, 6], [1, 3, 5], [0, 1, 2, 3, 4, 5]])
def test_ranks_have_equally_many_batches_whatever_they_can_read(tmp_path, bad):
    """A rank whose share is damaged fills up with what the others can read; nothing counts twice."""
    write_folder(tmp_path, 7)
    for number in bad:
        (tmp_path / f"{number}.jpg").write_bytes(b"no picture")
    dataset = folder_set(tmp_path, "held", batch_size=4)
    shares = [HeldOut(dataset, Collator.of(dataset.parts.tokenizer), rank, 2, None) for rank in (0, 1)]
    for _ in range(2):  # at every validation the same
        passes = [list(share) for share in shares]
        assert [len(one) for one in passes] == [2, 2]
        read = sorted(name for one in passes for batch, counts in one if counts for name in batch.ids)
        assert read == [f"{tmp_path.name}{number}" for number in range(7) if number not in bad]
        assert sum(share.unreadable for share in shares) == len(bad) and not any(share.empty for share in shares)


def test_held_out_data_need_numbers(tmp_path, capsys):
    tree = damaged(tmp_path)
    tree["validation"] = {"far": {"builder": "webdataset", "shards": "pipe:true", "kind": "ti-cap"}}
    for asked in (tree, evaluation(tree, tmp_path)):
        for more in ([], ["--check"]):
            assert tiny.run(tmp_path, asked, *more) == 1
            assert "validation.far: held-out samples need numbers" in capsys.readouterr().err


# Evaluation


def test_an_evaluation_writes_why_it_has_no_answer(tmp_path, capsys):
    tree = evaluation(damaged(tmp_path, 3, 7), tmp_path)
    file = tmp_path / "held" / "list.json"
    listed = json.loads(file.read_text())
    listed[5]["image_id"], listed[0]["group"], listed[7]["group"] = "gone.jpg", "a", "b"
    file.write_text(json.dumps(listed))
    assert main(tree, tmp_path) == 0
    said = capsys.readouterr().err
    assert "held (full): 3 of 12 questions failed, which are NOT in this score" in said
    rows = json_lines(tmp_path / "asked" / "predictions.jsonl")
    assert [row["id"] for row in rows] == [entry["image_id"] for entry in listed]
    failed = {row["id"]: row for row in rows if "error" in row}
    assert set(failed) == {"3.jpg", "gone.jpg", "7.jpg"} and "no such image" in failed["gone.jpg"]["error"]
    for row in failed.values():
        assert row["prediction"] is None and row["correct"] is None and row["references"]
        assert row["media"]["image"][0].endswith(row["id"])
    keys = ["id", "dataset", "group", "condition", "question", "prediction", "references", "correct", "media"]
    assert all(list(row) == keys + ["error"] * ("error" in row) for row in rows)
    scores = json.loads((tmp_path / "asked" / "scores.json").read_text())["held"]["full"]
    assert (scores[""]["n"], scores[""]["failed"]) == (9, 3) and "failed" not in scores["a"]
    assert (scores["b"]["n"], scores["b"]["value"], scores["b"]["failed"]) == (0, None, 1)


def test_nothing_answered_is_an_error(tmp_path, capsys):
    assert main(evaluation(damaged(tmp_path, *range(12)), tmp_path), tmp_path) == 1
    assert "not one of 12 questions was answered; the first: " in capsys.readouterr().err
    assert len(json_lines(tmp_path / "asked" / "predictions.jsonl")) == 12


def test_a_batch_that_cannot_be_answered_is_tried_one_by_one(tmp_path, monkeypatch):
    original = EvaluationRunner._generate

    def generate(self, examples, name):
        if any(example.tokens.id == "2.jpg" for example in examples):
            raise RuntimeError("out of memory")
        return original(self, examples, name)

    tree = evaluation(damaged(tmp_path), tmp_path)
    assert main(tree, tmp_path) == 0
    whole = json_lines(tmp_path / "asked" / "predictions.jsonl")
    monkeypatch.setattr(EvaluationRunner, "_generate", generate)
    assert main(tree, tmp_path) == 0
    rows = json_lines(tmp_path / "asked" / "predictions.jsonl")
    assert rows[2]["error"] == "cannot be used (RuntimeError: out of memory)"
    assert [row["prediction"] for row in rows] == [None if i == 2 else r["prediction"] for i, r in enumerate(whole)]


def test_a_killed_evaluation_leaves_the_rows_it_had(tmp_path):
    tree = evaluation(damaged(tmp_path, 1), tmp_path)
    tree["validation"]["held"] |= {"batch_size": 1}
    file = tmp_path / "held" / "list.json"
    file.write_text(json.dumps(json.loads(file.read_text()) * 200))
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "scores.json").write_text("{}")  # of an earlier run
    run, rows = started(tree, tmp_path), tmp_path / "asked" / "predictions.jsonl"
    assert run.until(lambda: rows.exists() and rows.read_bytes().count(b"\n") > 3)
    run.kill()
    left = json_lines(rows)
    assert 3 < len(left) < 2400 and left[1]["id"] == "1.jpg" and "error" in left[1]
    assert not (tmp_path / "asked" / "scores.json").exists()


def test_ranks_write_the_same_rows_and_one_file(tmp_path):
    tree = evaluation(damaged(tmp_path, 3, 8), tmp_path)
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "predictions_rank5.jsonl").write_text("{}\n")  # of an earlier run
    assert set(started(tree, tmp_path, 2).wait()) == {0}
    two = json_lines(tmp_path / "asked" / "predictions.jsonl")
    assert [p.name for p in (tmp_path / "asked").glob("predictions*")] == ["predictions.jsonl"]
    assert [row["id"] for row in two] == [f"{i}.jpg" for rank in (0, 1) for i in range(rank, 12, 2)]
    assert json.loads((tmp_path / "asked" / "scores.json").read_text())["held"]["full"][""]["failed"] == 2
    assert main(tree, tmp_path) == 0
    one = json_lines(tmp_path / "asked" / "predictions.jsonl")
    assert sorted(one, key=lambda row: row["id"]) == sorted(two, key=lambda row: row["id"])


def test_questions_that_nobody_asks(tmp_path, capsys):
    for only, said in (
        (["other*"], "run.only: ['other*'] matches no set under validation: held"),
        ([], "run.only: []"),
    ):
        assert main(evaluation(damaged(tmp_path / str(len(only))), tmp_path, only=only), tmp_path) == 1
        assert said in capsys.readouterr().err


def test_rows_can_always_be_written(tmp_path):
    file = RowFile(tmp_path, 0)
    row = {"id": "caf\udce9.jpg", "dataset": "a", "condition": "full", "correct": None, "prediction": "\ud83d"}
    file.add(row)
    file.join([row])
    assert json_lines(file.path) == [row] and read_rows(file.path) == [row]


def test_failed_questions_are_told_beside_the_score():
    row = {"condition": "full", "group": "", "question": "?", "references": ["x"], "prediction": "X."}
    rows = [row, {**row, "references": []}, *[{**row, "prediction": None, "error": "gone"}] * 2]
    (groups,) = score(rows, [ExactMatch()]).values()
    assert groups == {"": Scores({"exact_match": Score.of([True])}, failed=2)}


# Exact match


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("A", "A", True), ("a.", "A", True), ('"A"', "a", True), ("the A", "A", True),
        ("", "A", False), ("the", "A", False), (".", "A", False), ("an", "A", False), ("a the", "A", False),
        ("", "?", False), ("?", "?", True), ("", "the", False), ("the the", "A.", False), ("", "", False),
        ("vitamin", "vitamin A", False), ("Vitamin a", "vitamin A", True), ("plan", "plan A.", False),
        ("C and the", "C and A", False), ("and C", "A and C", False), ("B", "A B", False), ("B", "A, B", False),
        ("or b", "A or B", False), ("C", "C a", False),
        ("the cat", "cat", True), ("a cat", "An cat.", True), ("cat on mat", "a cat on the mat", True),
        ("t-shirt", "a t-shirt", True), ("3", "the 3", True), ("red  Square.", "the red square", True),
        ("The Who", "who", True), ("theatre", "atre", False), ("nana", "an ana", False),
    ],
)  # fmt: skip
def test_articles_are_articles_only_in_front_of_a_word(said, answer, right):
    assert exact_match(said, [answer]) is exact_match(said, ["something else", answer]) is right
    assert normalise(normalise(said)) == normalise(said)


def test_a_verdict_that_is_missing_is_wrong():
    for said, right in (("red vs blue differ, so", False), ("red vs blue differ, so no", True)):
        answer = Prediction.of({"prediction": said, "references": ["so no"], "question": "", "group": ""}, "so")
        assert exact_match(answer.prediction, answer.references) is right
