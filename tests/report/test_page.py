"""The page of a training run says what its files say, whatever is in them."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
from datetime import timedelta
from statistics import mean, median

import pytest
import yaml

from chatbridge.report import RunReport, metrics, write_report, writing
from tests.report.runs import (
    DATASETS,
    START,
    curve,
    event,
    read_page,
    record,
    report_of,
    train_row,
    validation_row,
    write_lines,
    write_run,
)

ROWS = [train_row(step) for step in range(1, 101)]
HELD = [validation_row(step, "held", 3.0 / step) for step in (50, 100)]


def test_headline_and_tables_hold_the_figures_of_the_files(tmp_path):
    events = [event(0, "start"), event(80, "checkpoint", "step_00000080")]
    page = report_of(write_run(tmp_path / "run", ROWS + HELD, events, [], record()))
    assert page.one("h1").text == "run"
    assert page.tile("Step").figures == [100, 200]
    left = 100 * mean(r["step_seconds"] for r in ROWS[-20:])
    assert page.tile("Time left").figures == pytest.approx([left])
    assert page.tile("Last loss").figures == pytest.approx([ROWS[-1]["loss"], mean(r["loss"] for r in ROWS[-20:])])
    assert page.tile("Validation loss").figures == pytest.approx([0.03])
    assert page.tile("Last checkpoint at step").figures == [80]
    assert page.tile("Samples per second").figures == pytest.approx([mean(r["samples_per_second"] for r in ROWS)])
    assert page.tile("Share of the peak").figures == pytest.approx([mean(r["peak_share"] for r in ROWS)])
    assert page.tile("Waiting for data").figures == pytest.approx([mean(r["data_share"] for r in ROWS)])
    told = page.table("Training loss: summary")
    assert list(told) == list(DATASETS)
    for name in DATASETS:
        own = [(r["step"], r["loss"]) for r in ROWS if r["dataset"] == name]
        values = [v for _, v in own]
        low, high = min(own, key=lambda p: p[1]), max(own, key=lambda p: p[1])
        expected = [len(own), values[-1], mean(values[-20:]), median(values), low[1], low[0], high[1], high[0], 0]
        assert [float(v) for v in told[name]] == pytest.approx(expected)
    parts = list(page.table("Training loss: means by steps").items())
    for (steps, means), low, high in zip(parts[:2], (0, 12), (12, 25), strict=True):
        assert steps == f"{low + 1} – {high}"
        expected = [mean(r["loss"] for r in ROWS[low:high] if r["dataset"] == name) for name in DATASETS]
        assert [float(v) for v in means] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("caption", "name", "key"),
    [
        ("Learning rate", "learning rate", "lr"),
        ("Gradient norm", "all parameters", "grad_norm"),
        ("Tokens per second", "tokens/s", "tokens_per_second"),
        ("Operations per second", "TFLOP/s", "tflops"),
        ("Time of a step", "seconds", "step_seconds"),
        ("Memory", "GB", "memory_gb"),
        ("Replaced samples and skipped steps", "replaced", "replaced"),
    ],
)
def test_every_quantity_has_its_table(tmp_path, caption, name, key):
    page = report_of(write_run(tmp_path, ROWS, run=record()))
    told = page.table(f"{caption}: summary")[name]
    assert float(told[1]) == ROWS[-1][key]
    assert float(told[3]) == pytest.approx(median(r[key] for r in ROWS))
    component = page.table("Gradient norm by component: summary")["bridges.vision.perceiver"]
    assert float(component[1]) == pytest.approx(0.7 / 100)


def test_steps_that_pass_a_component_by_do_not_count_in_its_norm(tmp_path):
    rows = [train_row(s, grad_norms={"audio": 2.0 + s if s % 2 else 0.0, "dead": 0.0}) for s in range(1, 11)]
    told = report_of(write_run(tmp_path, rows, run=record())).table("Gradient norm by component: summary")
    assert told["audio"][:2] == ["5", "11.0"] and told["audio"][4:6] == ["3.0", "1"]
    assert told["dead"][:2] == ["10", "0.0"], "a component that never learns is seen"


def test_long_runs_are_thinned_and_keep_their_peak(tmp_path):
    rng = random.Random(0)
    peak, gap = 123_457, 150_003
    rows = [f'{{"step": {s}, "split": "train", "loss": {1 + rng.random()}, "dataset": "a"}}' for s in range(1, 200_001)]
    rows[peak - 1] = f'{{"step": {peak}, "split": "train", "loss": 77.5, "dataset": "a"}}'
    rows[gap - 1] = f'{{"step": {gap}, "split": "train", "loss": NaN, "dataset": "a"}}'
    write_lines(tmp_path / "metrics.jsonl", rows)
    file = RunReport(tmp_path).write()
    assert file.stat().st_size < 200_000
    page = read_page(file.read_text(encoding="utf-8"))
    assert page.table("Training loss: summary")["a"][6:8] == ["77.5", str(peak)]
    plot = next(n for n in page.one("figure", id="train-loss").all("div") if n.attrs.get("class") == "plot linear")
    low, high = float(plot.attrs["data-y0"]), float(plot.attrs["data-y1"])
    pieces = curve(plot.one("path", class_="raw c0"))
    assert len(pieces) == 2, "the NaN leaves one gap"
    points = [p for piece in pieces for p in piece]
    assert 500 < len(points) < 2000
    x, y = min(points, key=lambda p: p[1])
    assert low + (1 - y / 1000) * (high - low) == pytest.approx(77.5, abs=(high - low) / 1000)
    assert x / 4000 * 200_000 == pytest.approx(peak, abs=50)
    assert pieces[0][-1][0] <= round(gap / 200_000 * 4000) <= pieces[1][0][0] + 1


def test_refreshing_reads_only_what_was_added(tmp_path, monkeypatch):
    write_run(tmp_path, ROWS, [event(0, "start")], [], record())
    now, parsed, real = START + timedelta(days=1), [], metrics.json_object
    monkeypatch.setattr(metrics, "json_object", lambda line: parsed.append(line) or real(line))
    report = RunReport(tmp_path)
    report.write(now)
    assert len(parsed) == 100
    report.write(now)
    assert len(parsed) == 100
    write_lines(tmp_path / "metrics.jsonl", [train_row(101), train_row(102)], "a")
    write_lines(tmp_path / "events.jsonl", [event(101, "resumed")], "a")
    text = report.write(now).read_text()
    assert len(parsed) == 102
    assert text == RunReport(tmp_path).write(now).read_text()
    assert read_page(text).tile("Step").figures[0] == 102


def test_a_cut_last_line_waits_until_it_is_whole(tmp_path):
    write_run(tmp_path, ROWS, run=record())
    report, line = RunReport(tmp_path), json.dumps(train_row(101)) + "\n"
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write(line[:40])
        out.flush()
        page = read_page(report.write().read_text())
        assert page.tile("Step").figures[0] == 100
        assert "could not be read and" not in page.text
        out.write(line[40:])
    assert read_page(report.write().read_text()).tile("Step").figures[0] == 101


@pytest.mark.parametrize("grown", [False, True])
def test_a_log_that_was_written_anew_is_read_anew(tmp_path, grown):
    write_run(tmp_path, ROWS, run=record())
    report, now = RunReport(tmp_path), START
    report.write(now)
    rows = [train_row(s, loss=9.0, losses={"image": 9.0}) for s in range(1, 140 if grown else 50)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    text = report.write(now).read_text()
    assert read_page(text).table("Training loss: summary")["image"][1] == "9.0"
    assert text == RunReport(tmp_path).write(now).read_text()


def test_steps_that_come_again_replace_the_first_ones(tmp_path):
    again = [train_row(s, loss=9.0, losses={"image": 9.0}) for s in range(61, 81)]
    held = [validation_row(50, "held", 1.0), validation_row(70, "held", 1.0), validation_row(70, "late", 1.0)]
    page = report_of(write_run(tmp_path, [*ROWS, *held, *again], run=record()))
    assert page.tile("Step").figures[0] == 80
    assert page.tile("Last loss").figures == [9.0, 9.0]
    images = [r for r in ROWS[:60] if r["dataset"] == "image"]
    assert float(page.table("Training loss: summary")["image"][0]) == len(images) + 20
    told = page.table("Validation loss: summary")
    assert list(told) == ["held"] and told["held"][0] == "1", "the others were of steps that were gone back over"
    assert "more below" not in page.tile("Validation loss").text
    assert "logged again from step 61" in page.text


def test_values_that_are_not_finite_are_gaps_and_are_listed(tmp_path):
    bad = {33: math.nan, 66: math.inf, 90: -math.inf}
    rows = [train_row(s, loss=bad[s], losses={"image": bad[s]}) if s in bad else train_row(s) for s in range(1, 101)]
    page = report_of(write_run(tmp_path, rows, run=record()))
    assert "not finite at 3 logged steps: 33, 66, 90" in page.text
    figure = page.one("figure", id="train-loss")
    assert "image at step 33, 66, 90" in figure.text
    assert page.table("Training loss: summary")["image"][-1] == "3"
    shown = [n for n in figure.all("path") if n.attrs.get("class") == "line c0"]
    assert shown and all(len(curve(path)) == 4 for path in shown)
    assert not any("nan" in (n.attrs.get("d") or "").lower() for n in page.walk())


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' \ud800\x00&amp;"


def test_hostile_text_stays_text(tmp_path):
    rows = [train_row(s, dataset=HOSTILE, losses={HOSTILE: 1.0 + s}, grad_norms={HOSTILE: 2.0}, drawn={HOSTILE: 3})
            for s in range(1, 20)]  # fmt: skip
    rows.append(validation_row(19, HOSTILE, 1.0))
    ledger = [{"dataset": HOSTILE, "sample_id": HOSTILE, "file": HOSTILE, "reason": f"bad: {HOSTILE}!"}]
    run = record(command=[HOSTILE], device=HOSTILE, versions={HOSTILE: HOSTILE}, annotations={HOSTILE: {HOSTILE: "1"}},
                 git={"commit": HOSTILE, "dirty": False}, config={"datasets": {HOSTILE: {"weight": 1}}, "x": HOSTILE},
                 sizes={HOSTILE: 3})  # fmt: skip
    events = [event(3, HOSTILE, HOSTILE), event(4, "hang", HOSTILE), event(5, "checkpoint_failed", HOSTILE)]
    page = report_of(write_run(tmp_path, rows, events, ledger, run))
    assert len(page.all("script")) == 1 and not page.all("img")
    assert not [a for n in page.walk() for a in n.attrs if a.startswith("on")]
    shown = HOSTILE.replace("\ud800", "\ufffd").replace("\x00", "\ufffd")
    ledger_row = page.one("div", id="ledger").one("tbody").all("td")
    assert [ledger_row[0].text, ledger_row[3].text] == ["bad: FILE!", shown]
    assert page.table("Latest events, newest first")["hang"][2] == shown
    assert shown in page.table("Training loss: summary")
    named = [n.attrs.get("data-name") for n in page.one("figure", id="grad-norms").all("path")]
    assert [name for name in named if name] == [shown]
    assert yaml.safe_load(page.one("details", id="config").one("code").text)["datasets"]


def test_the_page_needs_nothing_from_outside(tmp_path):
    page = report_of(write_run(tmp_path, ROWS + HELD, [event(0, "start")], [], record()))
    ids = {n.attrs["id"] for n in page.walk() if "id" in n.attrs}
    for node in page.walk():
        for key in ("src", "href", "action", "srcset", "data", "poster", "xlink:href"):
            target = node.attrs.get(key)
            assert target is None or target == "data:," or target.removeprefix("#") in ids, (node.tag, target)
        assert "//" not in "".join(v or "" for v in node.attrs.values()), node.tag
    style = page.one("style").text
    assert not any(word in style for word in ("url(", "@import", "//")) and "prefers-color-scheme:dark" in style
    policy = page.one("meta", http_equiv="Content-Security-Policy").attrs["content"]
    digest = base64.b64encode(hashlib.sha256(page.one("script").text.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_the_page_speaks_to_those_who_do_not_see_it(tmp_path):
    page = report_of(write_run(tmp_path, ROWS + HELD, [event(0, "start")], [], record()))
    assert page.one("html").attrs["lang"] == "en" and len(page.all("h1")) == 1
    pictures = page.all("svg")
    assert len(pictures) > 12
    assert all(p.attrs["role"] == "img" and p.attrs["aria-label"] for p in pictures)
    assert any("image: last 0.05" in p.attrs["aria-label"] for p in pictures)
    assert all(f.all("table") for f in page.all("figure") if f.attrs["id"] != "events")
    labelled = {n.attrs["for"] for n in page.all("label")}
    assert {n.attrs["id"] for n in page.all("input")} == labelled
    assert all(n.attrs["scope"] in ("row", "col") for n in page.all("th"))
    ids = [n.attrs["id"] for n in page.walk() if "id" in n.attrs]
    assert len(ids) == len(set(ids))


def test_rubbish_in_the_files_does_not_stop_the_page(tmp_path):
    rubbish = ["", "no json", "[1, 2]", '"text"', "null", "{}", '{"step": -1}', '{"step": true}', '{"step": 1.5}',
               '{"step": ' + "9" * 30 + "}", "[" * 100_000, '{"step": 200, "losses": [1], "grad_norms": 3, "drawn": 4}',
               '{"step": 201, "loss": "x", "lr": null, "grad_norm": true, "tokens": ' + "9" * 400 + "}"]  # fmt: skip
    events = ["no json", "[]", '{"event": null}', '{"event": "x", "step": "y", "time": 5}', '{"time": "2030"}']
    ledger = ["{", "{}", '{"dataset": 1, "file": null, "reason": ["x"], "count": "many"}', '{"count": 1e400}']
    folder = write_run(tmp_path, ROWS + rubbish, events, ledger)
    (folder / "run.json").write_text('{"config": ')
    (folder / "metrics.jsonl").open("ab").write(b'\xff\xfe{"step": 3}\n')
    page = report_of(folder)
    assert page.tile("Step").figures == [201]
    assert "11 lines of metrics.jsonl could not be read" in page.text and "run.json is not readable" in page.text
    for odd in ([], 5, {"config": [], "git": 3, "versions": [1], "annotations": {"a": 1}, "sizes": 4, "command": "x",
                        "world": -1, "started": "soon", "total_steps": 0}):  # fmt: skip
        (folder / "run.json").write_text(json.dumps(odd))
        assert report_of(folder).tile("Step").figures == [201]


def test_a_run_that_logged_nothing_yet_has_a_page(tmp_path):
    page = read_page(write_report(write_run(tmp_path, [], [event(0, "start")], [], record())).read_text())
    assert page.tile("Step").figures == [0, 200] and "Nothing logged yet" in page.text
    write_lines(tmp_path / "metrics.jsonl", ROWS, "a")
    assert read_page(write_report(tmp_path).read_text()).tile("Step").figures == [100, 200]


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    folder = write_run(tmp_path, ROWS, run=record())
    before = RunReport(folder).write().read_text()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        RunReport(folder).write()
    assert (folder / "report.html").read_text() == before
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.jsonl", "report.html", "run.json"]
