"""What the report judges: whether a run goes on, what its mixture was, what was lost; and how curves are made."""

from __future__ import annotations

import json
import math
import os
import random
from datetime import datetime, timezone

import numpy as np
import pytest
import yaml

from chatbridge.report import Run, RunReport
from chatbridge.report.__main__ import main
from chatbridge.report.axis import linear_axis, log_axis, step_axis
from chatbridge.report.formatting import duration, rounded, short
from chatbridge.report.page import REFRESH
from chatbridge.report.series import Series, smooth, thin
from tests.report.runs import DATASETS, event, read_page, record, report_of, train_row, write_lines, write_run

ROWS = [train_row(step) for step in range(1, 101)]
DAY = 86400.0


@pytest.mark.parametrize(
    ("state", "why", "events", "total", "age"),
    [
        ("running", "", [event(0, "start")], 200, 0),
        ("running", "", None, None, 0),
        ("finished", "", [event(0, "start"), event(100, "end", "finished")], 100, DAY),
        ("finished", "", None, 100, DAY),
        ("stopped", "nothing was written for 24 h 0 min: killed, or hanging", [event(0, "start")], 200, DAY),
        (
            "stopped",
            "signal: SIGTERM: stopped at step 100",
            [event(0, "start"), event(100, "signal", "SIGTERM: stopped at step 100"), event(100, "end", "stopped")],
            200,
            0,
        ),
        ("stopped", "asked to end before its last step: stopped", [event(100, "end", "stopped")], 200, 0),
        ("running", "hang: rank 3", [event(0, "start"), event(90, "hang", "rank 3")], 200, 0),
        ("stopped", "hang: rank 3", [event(0, "start"), event(90, "hang", "rank 3")], 200, 120),
        ("running", "", [event(90, "signal"), event(90, "end", "stopped"), event(90, "resumed")], 200, 0),
        ("running", "", [event(9, "resumed"), event(9, "end"), event(9, "resumed")], 200, 0),
    ],
)
def test_state_of_a_run(tmp_path, state, why, events, total, age):
    run = record(total_steps=total) if total else None
    page = report_of(write_run(tmp_path, ROWS, events, run=run, age=age))
    pill = next(n for n in page.all("span") if n.has_class("pill"))
    assert pill.text == state and state in page.one("head").one("title").text
    assert [n.text for n in page.all("p", class_="why")] == ([why] if why else [])
    again = [n.attrs["content"] for n in page.all("meta") if n.attrs.get("http-equiv") == "refresh"]
    assert again == ([str(REFRESH)] if state == "running" else [])


def test_a_process_that_stood_still_is_named(tmp_path):
    folder = write_run(tmp_path, ROWS, [event(0, "start")], run=record(), age=120)
    (folder / "hang_rank0.txt").write_text("")
    (folder / "hang_rank1.txt").write_text("Thread 0x1\n")
    run = Run(folder)
    run.refresh()
    state = run.state(datetime.now(timezone.utc))
    assert (state.kind, state.why) == ("stopped", "a process stood still; where, is in hang_rank1.txt")


def shares(folder):
    run = Run(folder)
    run.refresh()
    return {s.dataset: (s.drawn, s.share, s.expected) for s in run.shares()}


def configured(mode, weights, sizes=(600, 300, None), batches=(8, 16, 8), **more):
    datasets = {n: {"weight": w, "batch_size": b} | more for n, w, b in zip(DATASETS, weights, batches, strict=True)}
    return record(
        sizes=dict(zip(DATASETS, sizes, strict=True)), config={"datasets": datasets, "mixture": {"mode": mode}}
    )


@pytest.mark.parametrize(
    ("mode", "weights", "expected"),
    [
        ("random", (2.0, 1.0, 1.0), (16, 16, 8)),  # steps by weight, of 8 or 16 samples
        ("round_robin", (2.0, 1.0, 1.0), (8, 16, 8)),
        ("mixed", (2.0, 1.0, 1.0), (2, 1, 1)),
        ("random", (None, None, 75), (600, 300, 600)),  # no weight: its size in batches
        ("mixed", (None, None, 100), (600, 300, 100)),
        ("random", (1.0, 1.0, None), None),
        ("random", (0, 0, 0), None),
    ],
)
def test_mixture_as_drawn_beside_what_was_asked_for(tmp_path, mode, weights, expected):
    folder = write_run(tmp_path, ROWS, run=configured(mode, weights))
    found, drawn = shares(folder), ROWS[-1]["drawn"]
    assert {n: f[0] for n, f in found.items()} == drawn
    assert [f[1] for f in found.values()] == pytest.approx([n / sum(drawn.values()) for n in drawn.values()])
    asked = [None] * 3 if expected is None else [pytest.approx(e / sum(expected)) for e in expected]
    assert [f[2] for f in found.values()] == asked
    items = report_of(folder).one("div", id="mixture").all("li")
    assert [i.figures[:2] for i in items] == [pytest.approx(f[:2]) for f in found.values()]


def test_batches_by_tokens_have_no_expected_samples(tmp_path):
    folder = write_run(tmp_path, ROWS, run=configured("random", (1, 1, 1), batch_tokens=4000))
    assert [f[2] for f in shares(folder).values()] == [None] * 3


def older(row):
    kept = ("step", "split", "loss", "dataset", "lr", "grad_norm", "tokens", "replaced", "data_seconds", "step_seconds")
    return {key: row[key] for key in kept}


def test_an_older_run_without_record_events_and_new_keys(tmp_path):
    """Rows and files as runs had them before they wrote run.json."""
    rows = [older(r) for r in ROWS]
    (tmp_path / "checkpoints" / "step_00000050").mkdir(parents=True)
    tree = {"datasets": {n: {"weight": 1.0, "batch_size": 8} for n in DATASETS}}
    tree["run"] = {"max_steps": None, "max_epoch": 2, "iters_per_epoch": 100, "mixture": "round_robin"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    page = report_of(write_run(tmp_path, rows))
    assert page.tile("Step").figures == [100, 200]
    assert page.tile("Last checkpoint at step").figures == [50]
    waits = [r["data_seconds"] / r["step_seconds"] for r in rows]
    assert page.tile("Waiting for data").figures == pytest.approx([np.mean(waits)])
    rates = [r["tokens"] / r["step_seconds"] for r in rows]
    assert page.tile("Supervised tokens per second").figures == pytest.approx([np.mean(rates)])
    assert {n: f[0] for n, f in shares(tmp_path).items()} == {"image": 33, "video": 34, "sound": 33}
    assert "Counted in logged steps" in page.one("div", id="mixture").text
    assert not [f for f in page.all("figure") if f.attrs["id"] in ("peak", "memory", "samples")]


def entry(dataset, file, reason, **more):
    return {"dataset": dataset, "sample_id": "1", "file": file, "reason": reason, "replaced_by": "2"} | more


def test_ledgers_of_all_ranks_are_counted_together(tmp_path):
    first = [entry("image", f"/d/{i}.jpg", f"cannot identify image file '/d/{i}.jpg'") for i in range(5)]
    first += [entry("sound", "/d/shard.tar", "opened again after: reset", count=0)] * 2
    second = [
        entry("image", "/d/9.jpg", "cannot identify image file '/d/9.jpg'"),
        entry("video", "s.tar", "cut", count=7),
    ]
    folder = write_run(tmp_path, ROWS, ledger=first, run=record())
    write_lines(folder / "ledger_rank1.jsonl", second)
    report = RunReport(folder)

    def table():
        page = read_page(report.write().read_text())
        lines = page.one("div", id="ledger").one("tbody").all("tr")
        return [[line.one("th").text, *(c.text for c in line.all("td"))] for line in lines]

    expected = [
        ["video", "cut", "7", "1", "s.tar"],
        ["image", "cannot identify image file 'FILE'", "6", "6", "/d/0.jpg"],
        ["sound", "opened again after: reset", "0", "2", "/d/shard.tar"],
    ]
    assert table() == expected
    write_lines(folder / "ledger.jsonl", first[:2])  # a resumed run cuts the lines that it will write again
    assert table() == [expected[0], ["image", "cannot identify image file 'FILE'", "3", "3", "/d/0.jpg"]]


def test_reasons_without_end_do_not_fill_the_page(tmp_path):
    ledger = [entry("a", "x", f"reason {i}") for i in range(3000)]
    page = report_of(write_run(tmp_path, ROWS, ledger=ledger, run=record()))
    box = page.one("div", id="ledger")
    assert "3,000 samples" in box.text and len(box.one("tbody").all("tr")) == 50
    assert box.one("tbody").all("tr")[0].text.startswith("a(other reasons)1,000")


def test_events_are_listed_and_marked(tmp_path):
    events = [event(0, "start")] + [event(s, "checkpoint", f"step {s}") for s in range(5, 95, 5)]
    events += [event(50, "resumed", "with 2 processes"), event(95, "checkpoint_failed", "disk is full")]
    page = report_of(write_run(tmp_path, ROWS, events, run=record()))
    latest, earlier = (page.table(f"{w} events, newest first") for w in ("Latest", "Earlier"))
    assert len(page.one("div", id="event-list").all("tr")) == 2 + len(events)
    assert latest["checkpoint failed"][::2] == ["95", "disk is full"] and "start" in earlier
    marks = [n for n in page.one("figure", id="lr").all("path") if n.has_class("mark")]
    assert [(m.attrs["d"], m.has_class("bad")) for m in marks] == [("M2000 0v1000", False), ("M3800 0v1000", True)]
    strip = page.one("figure", id="events")
    assert "checkpoint 18 times" in strip.one("svg").attrs["aria-label"]
    assert "1 checkpoint could not be written; the last at step 95: disk is full" in page.text


def test_running_mean_is_the_plain_one():
    rng = random.Random(1)
    values = np.array([rng.random() for _ in range(200)])
    values[[50, 120]] = math.nan
    found = smooth(values, 9, np.arange(200))
    for i, value in enumerate(values):
        half = min(4, i)
        around = values[i - half : i + half + 1]
        assert math.isnan(found[i]) if math.isnan(value) else found[i] == pytest.approx(np.nanmean(around))


@pytest.mark.parametrize("count", [0, 1, 900, 5000])
def test_thinning_keeps_ends_peaks_and_gaps_of_every_part(count):
    rng = np.random.default_rng(count)
    steps, values = np.cumsum(rng.integers(1, 30, count)), rng.normal(size=count)
    values[::701] = math.nan
    kept = thin(steps, values, 100)
    assert (np.diff(kept) > 0).all() and len(kept) <= max(200, 302)
    if count > 200:
        parts = np.searchsorted(steps, np.linspace(steps[0], steps[-1] + 1, 101))
        for a, b in zip(parts[:-1], parts[1:], strict=True):
            inside = values[kept[(kept >= a) & (kept < b)]]
            assert np.nanmin(inside) == np.nanmin(values[a:b]) and np.nanmax(inside) == np.nanmax(values[a:b])
            assert np.isnan(inside).any() == np.isnan(values[a:b]).any()
        assert kept[0] == 0 and kept[-1] == count - 1
    else:
        assert kept.tolist() == list(range(count))


def test_a_series_that_goes_back_forgets():
    series = Series()
    for step in [*range(0, 1000, 10), *range(500, 600, 10), 550]:
        series.add(step, step / 10)
    assert series.steps.tolist() == list(range(0, 560, 10)) and series.last == 55.0
    assert series.summary().highest == (550, 55.0)


@pytest.mark.parametrize("low, high", [(0, 0), (5, 5), (-3, 4), (1e-7, 3e-7), (1e-9, 4e8), (0.99, 1.01), (-2, -1)])
def test_axes_hold_their_values_and_have_few_round_ticks(low, high):
    values = np.array([low, high], dtype=float)
    axes = [linear_axis(values), linear_axis(values, zero=True)] + ([log_axis(values)] if low > 0 else [])
    for axis in axes:
        places = axis.place(values)
        assert -1e-9 <= places[0] <= places[1] <= 1 + 1e-9
        assert 2 <= len(axis.ticks) <= 9 and list(axis.ticks) == sorted(set(axis.ticks))
        assert all(axis.low <= t <= axis.high for t in axis.ticks)
        assert len({short(t) for t in axis.ticks}) == len(axis.ticks)
    for last in (1, 7, 600, 123_456):
        ticks = step_axis(0, last).ticks
        assert 2 <= len(ticks) <= 8 and ticks[-1] <= last and all(t == int(t) for t in ticks)


def test_numbers_for_people():
    told = {0.0: "0", 1234567.0: "1,234,567", 0.5: "0.5000", 1.49: "1.490", 3e-7: "3.000e-7", math.nan: "NaN"}
    told |= {None: "–", -math.inf: "−∞", 1234.56: "1,234.6", 1e20: "1.000e+20"}
    assert {value: rounded(value) for value in told} == told
    assert [duration(s) for s in (5, 90, 3700, 200_000)] == ["5 s", "2 min", "1 h 1 min", "2 d 7 h"]
    assert [short(v) for v in (0, 1500, 2e6, 0.02, 1e-5, 2.5e-4)] == ["0", "1.5k", "2M", "0.02", "1e-5", "2.5e-4"]


def test_record_is_shown_whole(tmp_path):
    page = report_of(write_run(tmp_path, ROWS, run=record()))
    box = page.one("div", id="record")
    for told in ("train.py --cfg-path", "H100", "abc123, with changes not committed", "torch 2.11.0", "sound unknown"):
        assert told in box.text
    assert page.table("Annotation files and their SHA-256")["image"] == ["image.json", "f00d"]
    assert yaml.safe_load(box.one("details", id="config").one("code").text) == record()["config"]
    assert json.dumps("a b.yaml").strip('"') in box.text


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "ledger.jsonl", "run.json", "config.yaml"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(tmp_path, capsys, name):
    folder = write_run(tmp_path, [train_row(step) for step in range(1, 5)])
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    status = main([str(folder), "--output", str(tmp_path / "page.html")])
    if name in ("run.json", "config.yaml"):
        assert status == 0
    else:
        assert status == 1 and name in capsys.readouterr().err


def test_numbers_at_the_ends_of_what_there_is(tmp_path):
    extremes = [1e308, -1e308, 1e-320, 5e-324, 0.0, math.inf, -math.inf, math.nan, 1e100]
    rows = [train_row(step, loss=value, lr=abs(value), grad_norm=value) for step, value in enumerate(extremes, 1)]
    page = report_of(write_run(tmp_path, [*rows, *(train_row(step) for step in range(10, 20))]))
    assert page.tile("Step").figures == [19]
    series = Series()
    for step, value in enumerate(extremes):
        series.add(step, value)
    assert series.values.tolist()[:7] == [math.inf, -math.inf, 0.0, 0.0, 0.0, math.inf, -math.inf]
