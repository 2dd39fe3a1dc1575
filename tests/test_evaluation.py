"""The report: figures against ones worked out by hand, text, and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from chatbridge.evaluation.markdown import runs_table, summary_table
from chatbridge.evaluation.metrics import Score, exact_match, normalise, verdict, wilson
from chatbridge.evaluation.report import (
    ReportInput,
    StageFiles,
    choose_samples,
    guess_levels,
    joint_scores,
    read_rows,
    write_report,
)
from dataset_prep.quickstart import update_page


def row(dataset, correct, condition="full", group="", reference="x", media=None):
    """One answer as the evaluation runner writes it."""
    prediction = reference if correct else "something else"
    references = [] if correct is None else [reference]
    return {
        "id": "0", "dataset": dataset, "group": group, "condition": condition, "question": "what do you see?",
        "prediction": prediction, "references": references, "correct": correct, "media": media or {},
    }  # fmt: skip


def rows_of(dataset, hits, n, **more):
    return [row(dataset, i < hits, **more) for i in range(n)]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def media(tmp_path):
    """A picture and a sound to be shown on the sheet of samples."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    soundfile.write(tmp_path / "a.wav", rng.normal(0, 0.1, 8000), 16000)
    return {"image": [str(tmp_path / "a.jpg")], "audio": [str(tmp_path / "a.wav")]}


@pytest.fixture
def runs(tmp_path, media):
    """A whole report's input, small enough to count by hand."""
    after1 = rows_of("test_image_caption", 1, 4) + rows_of("test_image_qa", 2, 4)
    after1 += rows_of("joint_image_match", 1, 2, group="rule", reference="a is b, so yes", media=media)
    after2 = rows_of("test_image_caption", 3, 4) + rows_of("test_image_qa", 4, 4) + rows_of("unseen_audio_qa", 1, 5)
    for condition, hits in (("full", 9), ("no_audio", 4), ("blind", 0)):
        after2 += rows_of("joint_image_match", hits, 10, condition=condition, group="rule", media=media)
        after2 += rows_of("joint_video_match", 1, 2, condition=condition, group="while")
    after2 += rows_of("joint_unseen_video_two_attributes", 2, 3, group="shape+tempo")
    after2 += [row("joint_image_match", None), *rows_of("my_own_set", 1, 2)]
    bare1, bare2 = rows_of("test_image_caption", 4, 4), rows_of("test_image_caption", 2, 4)
    steps = [{"step": s, "split": "train", "dataset": "image", "loss": 1 / s, "lr": 1e-3} for s in range(1, 9)]
    steps.append({"step": 8, "split": "validation", "dataset": "image", "loss": 0.2})
    metrics = write(tmp_path / "metrics.jsonl", steps)
    return ReportInput(
        stage1=StageFiles(
            answers=write(tmp_path / "a1.jsonl", after1), captions=write(tmp_path / "c1.jsonl", bare1), metrics=metrics
        ),
        stage2=StageFiles(
            answers=write(tmp_path / "a2.jsonl", after2), captions=write(tmp_path / "c2.jsonl", bare2), metrics=metrics
        ),
        wall_seconds={"stage1": 10.0, "stage2": 20.5},
        peak_rss_bytes=3 * 2**30,
        seed=7,
        settings={"stage1.max_steps": 8},
    )


@pytest.fixture
def report(runs, tmp_path):
    returned = write_report(tmp_path / "out", runs)
    on_disk = json.loads((tmp_path / "out" / "report.json").read_text())
    assert on_disk == returned
    return on_disk


def hits(score):
    """(right, asked) of a score, after its interval was checked."""
    right = round(score["value"] * score["n"])
    assert score["ci95"] == pytest.approx(wilson(right, score["n"]))
    return right, score["n"]


def test_joint_scores_pool_pictures_and_videos_and_drop_what_cannot_be_judged(report):
    assert {c: hits(s["match"]) for c, s in report["joint"].items()} == {
        "full": (10, 12), "no_audio": (5, 12), "blind": (1, 12),
    }  # fmt: skip
    assert hits(report["joint_by_visual"]["image"]["full"]["match"]) == (9, 10)
    assert hits(report["joint_by_visual"]["video"]["full"]["match"]) == (1, 2)
    assert {g: hits(s) for g, s in report["joint_by_group"]["match"].items()} == {"rule": (9, 10), "while": (1, 2)}
    assert hits(report["joint_after_stage1"]["full"]["match"]) == (1, 2)


def test_captions_are_bare_after_stage_1_and_asked_for_after_stage_2(report):
    assert hits(report["single"]["stage1"]["image"]["caption"]) == (4, 4)
    assert hits(report["single"]["stage2"]["image"]["caption"]) == (3, 4)
    assert hits(report["single"]["stage1"]["image"]["qa"]) == (2, 4)
    assert hits(report["single"]["stage2"]["image"]["qa"]) == (4, 4)
    assert hits(report["bare_captions"]["stage2"]["image"]) == (2, 4)
    assert hits(report["instructed_captions"]["stage1"]["image"]) == (1, 4)


def test_unseen_combinations_stand_apart(report):
    assert hits(report["unseen"]["single"]["stage2"]["audio"]["qa"]) == (1, 5)
    assert hits(report["unseen"]["joint"]["full"]["two_attributes"]) == (2, 3)
    assert "two_attributes" not in report["joint"]["full"]


def test_what_was_not_run_is_absent_and_unknown_sets_are_kept(report):
    assert "audio" not in report["single"]["stage2"]
    assert "no_visual" not in report["joint"]
    assert hits(report["other"]["my_own_set"]["full"]) == (1, 2)


def test_costs_and_settings(report):
    assert report["wall_seconds"] == {"stage1": 10.0, "stage2": 20.5, "total": 30.5}
    assert (report["peak_rss_bytes"], report["seed"]) == (3 * 2**30, 7)
    assert report["settings"] == {"stage1.max_steps": 8}


def test_pictures_are_drawn_and_the_text_shows_them(report, tmp_path):
    text = (tmp_path / "out" / "report.md").read_text()
    for name, least in (("loss.png", 400), ("ablations.png", 600), ("samples.png", 600)):
        pixels = np.asarray(Image.open(tmp_path / "out" / name).convert("RGB"))
        assert pixels.shape[1] >= least and pixels.std() > 10  # an empty sheet is white all over
        assert f"]({name})" in text
    assert "**.83** (.55–.95)" in text  # 10 of 12
    assert "3.00 GiB" in text and "Bridge seed 7" in text


def test_a_run_without_answers_makes_a_report_without_them(tmp_path):
    runs = ReportInput(stage1=StageFiles(), stage2=StageFiles(), wall_seconds={}, peak_rss_bytes=1, seed=0)
    report = write_report(tmp_path, runs)
    assert report["plots"] == [] and "joint" not in report
    assert not list(tmp_path.glob("*.png"))


def test_media_that_are_gone_are_named(runs, media, tmp_path):
    Path(media["image"][0]).unlink()
    with pytest.raises(ValueError, match="a.jpg"):
        write_report(tmp_path / "out", runs)


def test_guess_levels_by_hand():
    asked = []
    for shape, tempo in (("star", "slow"), ("moon", "slow"), ("star", "fast"), ("cross", "fast")):
        asked.append(row("joint_image_two_attributes", True, group="shape+tempo", reference=f"{shape} and {tempo}"))
    asked.append(row("joint_video_two_attributes", True, group="colour+tempo", reference="red and fast"))
    for answer in ("yes", "no"):
        asked.append(row("joint_image_match", True, group="rule", reference=f"a bell is yellow, so {answer}"))
    for answer in ("both", "neither", "only the sound", "only the shape"):
        asked.append(row("joint_image_match", True, group="while", reference=f"low vs low same, so {answer}"))
    levels = guess_levels(asked)
    assert levels["no_audio"]["two_attributes"] == 0.5  # slow or fast
    assert levels["no_visual"]["two_attributes"] == pytest.approx((4 / 3 + 1) / 5, abs=1e-4)  # three shapes, one colour
    assert levels["blind"]["two_attributes"] == pytest.approx((4 / 3 + 1) / 5 / 2, abs=1e-4)
    assert levels["blind"]["match"] == pytest.approx((2 / 2 + 4 / 4) / 6, abs=1e-4)
    assert levels["shuffled_visual"]["match"] == 0.5
    assert "caption_both" not in levels["blind"]


def test_the_sheet_shows_a_right_and_a_wrong_answer_of_every_set(media):
    rows = rows_of("joint_image_match", 2, 5) + rows_of("test_audio_qa", 3, 3)
    rows += rows_of("joint_unseen_image_match", 1, 2) + rows_of("joint_video_match", 1, 2, condition="blind")
    shown = [(r["dataset"], r["correct"]) for r in choose_samples(rows)]
    assert shown == [("joint_image_match", True), ("joint_image_match", False), ("test_audio_qa", True)]


def test_conditions_come_in_a_fixed_order():
    rows = [row("joint_image_match", True, condition=c) for c in ("mine", "blind", "no_audio", "full")]
    assert list(joint_scores(rows)) == ["full", "no_audio", "blind", "mine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{oops\n", "line 1: is not valid JSON"),
        ("[" * 100_000, "line 1: is nested too deeply"),
        ('{"dataset": "a", "condition": "full", "correct": true}\n{"id": 3}\n', "line 2 has no 'dataset'"),
        ("[1]\n", "line 1 has no 'dataset'"),
    ],
)
def test_answer_files_that_are_none(tmp_path, content, message):
    file = tmp_path / "predictions.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rows(file)


def test_tables_over_runs(runs, tmp_path):
    first = tmp_path / "first"
    write_report(first, runs)
    other = json.loads((first / "report.json").read_text())
    other["seed"], other["settings"] = 8, {"processor": "AVX2"}
    other["joint"]["full"]["match"] = Score.of([True, False]).as_dict()
    (tmp_path / "second.json").write_text(json.dumps(other))
    files = [first / "report.json", tmp_path / "second.json"]
    text = runs_table(files)
    assert text.splitlines()[0] == "|  | n | mean | range | seed 7 | seed 8, AVX2 |"
    line = next(line for line in text.splitlines() if line.startswith("| match: sound and sight"))
    assert line.startswith("| match: sound and sight | 12/2 | .67 | .50–.83 | **.83** ") and "**.50**" in line
    assert "| match: picture blanked" not in text  # not run
    summary = summary_table(files).splitlines()
    assert summary[0] == "| mean (range), runs: 2 | match | two attributes | caption both |"
    assert summary[2].startswith("| sound and sight | **.67** (.50–.83) | ")
    for make in (runs_table, summary_table):
        with pytest.raises(ValueError, match="at least one"):
            make([])
        (tmp_path / "third.json").write_text("{}")
        with pytest.raises(ValueError, match="third.json.*'seed'"):
            make([tmp_path / "third.json"])


def test_tables_are_written_between_their_marks(runs, tmp_path):
    write_report(tmp_path, runs)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- summary -->\nold\n<!-- end of summary -->\nb\n<!-- runs --><!-- end of runs -->\nc\n")
    update_page(page, [tmp_path / "report.json"])
    text = page.read_text()
    assert "old" not in text and text.startswith("a\n") and text.endswith("\nc\n")
    assert text.count("| match: sound and sight |") == 1 and text.count("| sound and sight | **") == 1
    page.write_text("nothing to write between")
    with pytest.raises(SystemExit, match="<!-- runs -->"):
        update_page(page, [tmp_path / "report.json"])


def test_wilson_against_published_values():
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 hits out of 2"):
        wilson(3, 2)


def test_exact_match_reads_past_form():
    assert normalise("  The red  Square. ") == "red square"
    assert exact_match("A red square.", ["red square"])
    assert not exact_match("red square rises", ["red square"])
    assert verdict("red vs blue differ, so no") == "no"
    assert exact_match("a bell is red, so no", ["a bell is yellow, so no"], verdict)
    with pytest.raises(ValueError, match="no reference"):
        exact_match("x", [])
