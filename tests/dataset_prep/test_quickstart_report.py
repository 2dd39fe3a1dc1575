"""The quickstart's report: figures against ones worked out by hand, text, tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from chatbridge.evaluation.metrics import wilson
from dataset_prep.quickstart.__main__ import update_page
from dataset_prep.quickstart.report import choose_samples, guess_levels, read_answers, scores, verdict, write_report
from dataset_prep.quickstart.tables import runs_table, summary_table

FACTS = {"seed": 7, "settings": {"scale": "tiny"}, "wall_seconds": {"stage1": 10.0, "total": 30.5}}
FACTS |= {"peak_rss_bytes": 3 * 2**30}
ANSWERS = {"match": "a is b, so yes", "two_attributes": "star and fast", "caption_both": "red star and slow bell"}


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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def placed(tmp_path: Path, rows: list[dict]) -> list[dict]:
    """Rows as they are read back, in the order and with the keys that the report works with."""
    return list(read_answers(write(tmp_path / "placed.jsonl", rows)))


@pytest.fixture
def media(tmp_path):
    """A picture and a sound to be shown on the sheet of samples."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    soundfile.write(tmp_path / "a.wav", rng.normal(0, 0.1, 8000), 16000)
    return {"image": [str(tmp_path / "a.jpg")], "audio": [str(tmp_path / "a.wav")]}


@pytest.fixture
def out(tmp_path, media):
    """What both stages leave on disk, small enough to count by hand."""
    after1 = rows_of("test_image_caption", 1, 4) + rows_of("test_image_qa", 2, 4)
    after2 = rows_of("test_image_caption", 3, 4) + rows_of("test_image_qa", 4, 4) + rows_of("unseen_audio_qa", 1, 5)
    for condition, hits in (("no_audio", 4), ("blind", 0), ("mine", 1), ("full", 9)):
        match = {"condition": condition, "reference": ANSWERS["match"]}
        after2 += rows_of("joint_image_match", hits, 10, group="rule", media=media, **match)
        after2 += rows_of("joint_video_match", 1, 2, group="while", **match)
        for family, group in (("two_attributes", "shape+tempo"), ("caption_both", "caption_both")):
            more = {"condition": condition, "group": group, "reference": ANSWERS[family]}
            after2 += rows_of(f"joint_image_{family}", 1, 2, **more)
    after2 += rows_of("joint_unseen_video_two_attributes", 2, 3, group="shape+tempo")
    after2 += [row("joint_image_match", None), *rows_of("my_own_set", 1, 2)]
    after2 += [{**row("my_own_set", None), "error": "gone"}] * 2
    out = tmp_path / "out"
    steps = [{"step": s, "split": "train", "dataset": "image", "loss": 1 / s, "lr": 1e-3} for s in range(1, 9)]
    for stage, answers, bare in (("stage1", after1, 4), ("stage2", after2, 2)):
        write(out / stage / "metrics.jsonl", steps)
        write(out / f"{stage}_answers" / "predictions.jsonl", answers)
        write(out / f"{stage}_captions" / "predictions.jsonl", rows_of("test_image_caption", bare, 4))
    return out


@pytest.fixture
def report(out):
    returned = write_report(out, FACTS)
    on_disk = json.loads((out / "report.json").read_text())
    assert on_disk == returned
    return on_disk


def hits(score):
    """(right, asked) of a score, after its interval was checked."""
    right = round(score["value"] * score["n"])
    assert score["ci95"] == pytest.approx(wilson(right, score["n"]))
    return right, score["n"]


def test_joint_scores_pool_pictures_and_videos_and_drop_what_cannot_be_judged(report):
    # Conditions come in a fixed order, those of one's own last.
    assert [(c, hits(s["match"])) for c, s in report["joint"].items()] == [
        ("full", (10, 12)), ("no_audio", (5, 12)), ("blind", (1, 12)), ("mine", (2, 12)),
    ]  # fmt: skip
    assert hits(report["joint_by_visual"]["image"]["full"]["match"]) == (9, 10)
    assert hits(report["joint_by_visual"]["video"]["full"]["match"]) == (1, 2)
    assert {g: hits(s) for g, s in report["joint_by_group"]["match"].items()} == {"rule": (9, 10), "while": (1, 2)}


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
    assert hits(report["joint"]["full"]["two_attributes"]) == (1, 2)


def test_what_was_not_run_is_absent_and_other_sets_are_kept(report, out):
    assert "audio" not in report["single"]["stage2"]
    assert "no_visual" not in report["joint"]
    assert hits(report["other"]["my_own_set"]["full"]) == (1, 2)
    assert report["failed"] == {"stage2": {"my_own_set": 2}}
    assert "2 questions of my_own_set (stage2)" in (out / "report.md").read_text()
    assert FACTS.items() <= report.items()


def test_pictures_are_drawn_and_the_text_shows_them(report, out):
    text = (out / "report.md").read_text()
    for name, least in (("loss.png", 400), ("ablations.png", 600), ("samples.png", 600)):
        pixels = np.asarray(Image.open(out / name).convert("RGB"))
        assert pixels.shape[1] >= least and pixels.std() > 10  # an empty sheet is white all over
        assert f"]({name})" in text
    assert "**.83** (.55–.95)" in text  # 10 of 12
    assert "3.00 GiB" in text and "Bridge seed 7" in text


@pytest.mark.parametrize("gone", ["out/stage1_captions/predictions.jsonl", "out/stage2/metrics.jsonl", "a.jpg"])
def test_files_that_are_gone_are_named(out, tmp_path, gone):
    (tmp_path / gone).unlink()
    with pytest.raises(ValueError, match=gone):
        write_report(out, FACTS)


def test_guess_levels_by_hand(tmp_path):
    asked = []
    for shape, tempo in (("star", "slow"), ("moon", "slow"), ("star", "fast"), ("cross", "fast")):
        asked.append(row("joint_image_two_attributes", True, group="shape+tempo", reference=f"{shape} and {tempo}"))
    asked.append(row("joint_video_two_attributes", True, group="colour+tempo", reference="red and fast"))
    for answer in ("yes", "no"):
        asked.append(row("joint_image_match", True, group="rule", reference=f"a bell is yellow, so {answer}"))
    for answer in ("both", "neither", "only the sound", "only the shape"):
        asked.append(row("joint_image_match", True, group="while", reference=f"low vs low same, so {answer}"))
    levels = guess_levels(placed(tmp_path, asked))
    assert levels["no_audio"]["two_attributes"] == 0.5  # slow or fast
    assert levels["no_visual"]["two_attributes"] == pytest.approx((4 / 3 + 1) / 5, abs=1e-4)  # three shapes, one colour
    assert levels["blind"]["two_attributes"] == pytest.approx((4 / 3 + 1) / 5 / 2, abs=1e-4)
    assert levels["blind"]["match"] == pytest.approx((2 / 2 + 4 / 4) / 6, abs=1e-4)
    assert levels["shuffled_visual"]["match"] == 0.5
    assert "caption_both" not in levels["blind"]
    assert verdict("red vs blue differ, so no") == "no"


def test_the_sheet_shows_a_right_and_a_wrong_answer_of_every_set(tmp_path):
    rows = rows_of("joint_image_match", 2, 5) + rows_of("test_audio_qa", 3, 3)
    rows += rows_of("joint_unseen_image_match", 1, 2) + rows_of("joint_video_match", 1, 2, condition="blind")
    shown = [(r["dataset"], r["correct"]) for r in choose_samples(placed(tmp_path, rows))]
    assert shown == [("joint_image_match", True), ("joint_image_match", False), ("test_audio_qa", True)]


def test_tables_over_runs(report, out, tmp_path):
    report["seed"], report["settings"] = 8, {"processor": "AVX2"}
    report["joint"]["full"]["match"] = scores(rows_of("joint_image_match", 1, 2))
    (tmp_path / "second.json").write_text(json.dumps(report))
    files = [out / "report.json", tmp_path / "second.json"]
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


def test_tables_are_written_between_their_marks(report, out):
    page = out / "page.md"
    page.write_text("a\n<!-- summary -->\nold\n<!-- end of summary -->\nb\n<!-- runs --><!-- end of runs -->\nc\n")
    update_page(page, [out / "report.json"])
    text = page.read_text()
    assert "old" not in text and text.startswith("a\n") and text.endswith("\nc\n")
    assert text.count("| match: sound and sight |") == 1 and text.count("| sound and sight | **") == 1
    page.write_text("nothing to write between")
    with pytest.raises(SystemExit, match="<!-- runs -->"):
        update_page(page, [out / "report.json"])
