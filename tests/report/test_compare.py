"""``python -m chatbridge.report``: one run, several runs, and what is no run."""

from __future__ import annotations

import json
import math
from statistics import mean

import pytest

from chatbridge.report.__main__ import main
from tests.report.runs import read_page, record, train_row, validation_row, write_run


def lower(step):
    """A run with half the loss."""
    row = train_row(step)
    return row | {"loss": row["loss"] / 2, "losses": {n: v / 2 for n, v in row["losses"].items()}}


@pytest.fixture
def runs(tmp_path):
    held = [validation_row(s, "held", v) for s, v in ((10, 2.0), (20, 1.0), (30, 1.5))]
    first = [train_row(s) for s in range(1, 41)] + held
    second = [lower(s) for s in range(1, 31)] + [lower(31) | {"loss": math.nan, "losses": {"video": math.nan}}]
    changed = record()["config"] | {"run": {"init_lr": 3e-4, "seed": 1, "new": [1, "a"]}}
    return [
        write_run(tmp_path / "old" / "run", first, run=record()),
        write_run(tmp_path / "new" / "run", second, run=record(world=4, config=changed)),
    ]


def test_one_run_from_the_command_line(runs, capsys):
    assert main([str(runs[0])]) == 0
    out = capsys.readouterr().out
    page = read_page((runs[0] / "report.html").read_text())
    assert page.tile("Step").figures == [40, 200]
    lines = {line[:25].strip(): line[25:].strip() for line in out.splitlines()}
    assert lines["step"] == "40" and lines["validation held"] == "1.500" and lines["lowest validation held"] == "1"
    assert out.rstrip().endswith(str(runs[0] / "report.html"))


def test_runs_are_compared(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*map(str, runs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["page"] == "comparison.html" and [r["step"] for r in told["runs"]] == [40, 31]
    first, second = told["runs"]
    assert first["recent_loss"] == pytest.approx(mean(train_row(s)["loss"] for s in range(21, 41)))
    assert first["validation"]["held"] == {"last": 1.5, "lowest": 1.0, "at": 20}
    assert second["loss"] is None and second["not_finite"] == 1 and second["validation"] == {}
    assert told["differences"] == {
        "run.init_lr": ["0.0001", "0.0003"],
        "run.new": ["–", '[1, "a"]'],
        "world": ["2", "4"],
    }

    page = read_page((tmp_path / "comparison.html").read_text())
    figures = page.table("Figures of the runs")
    assert [float(v) for v in figures["loss, mean of last 20"]] == [first["recent_loss"], second["recent_loss"]]
    assert [float(v) for v in figures["loss image"]] == [first["losses"]["image"], second["losses"]["image"]]
    assert figures["validation held"] == ["1.5", "–"]
    heads = [n.text for n in page.one("div", id="figures").one("thead").all("th")]
    assert heads == ["", "old/run", "new/run"]
    assert page.table("Keys in which the runs differ")["run.init_lr"] == ["0.0001", "0.0003"]
    best = page.one("div", id="figures").all("strong")
    assert str(second["recent_loss"]) in [n.one("data").attrs["value"] for n in best]

    for name in ("image", "video", "sound"):
        own = page.table(f"Training loss: {name}: summary")
        assert list(own) == ["old/run", "new/run"]
        assert float(own["old/run"][0]) == sum(train_row(s)["dataset"] == name for s in range(1, 41))
    drawn = page.one("figure", id="loss-0").all("path", data_name="new/run")
    assert drawn and all(p.attrs["class"] == "line c1" for p in drawn)
    assert len(page.all("figure", id="validation-0")) == 1
    assert not [m for m in page.all("meta") if m.attrs.get("http-equiv") == "refresh"]


def test_the_table_in_the_terminal(runs, tmp_path, capsys):
    page = tmp_path / "x.html"
    assert main([*map(str, runs), "--output", str(page)]) == 0
    out = capsys.readouterr().out
    assert page.is_file() and out.rstrip().endswith(str(page))
    head = out.splitlines()[0].split()
    assert head == ["old/run", "new/run"]
    rows = {line.split("  ")[0]: line.split()[-2:] for line in out.splitlines() if line}
    assert rows["step"] == ["40", "31"] and rows["steps not finite"] == ["0", "1"]
    assert rows["run.init_lr"] == ["0.0001", "0.0003"]


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    evil = "\x1b[2J\u202eevil\ud800" + "x" * 100
    rows = [train_row(s, losses={evil: 1.0}) for s in range(1, 5)]
    assert main([str(write_run(tmp_path, rows, run=record()))]) == 0
    out = capsys.readouterr().out
    out.encode("utf-8")
    assert "\x1b" not in out and "\u202e" not in out and max(map(len, out.splitlines()[:-1])) < 100


def test_runs_that_are_the_same_differ_in_nothing(tmp_path, capsys):
    rows = [train_row(s) for s in range(1, 5)]
    two = [write_run(tmp_path / n, rows, run=record()) for n in "ab"]
    page = tmp_path / "x.html"
    assert main([*map(str, two), "--output", str(page)]) == 0
    assert "what differs" not in capsys.readouterr().out
    tree = read_page(page.read_text())
    assert "are the same" in tree.text and not tree.one("div", id="figures").all("strong")


def test_what_is_no_run_is_an_error(runs, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    empty = write_run(tmp_path / "empty", [])
    write_run(tmp_path / "broken", ['{"step": 1, "lo'])
    rubbish = write_run(tmp_path / "rubbish", ["no json"])
    cases = {
        str(tmp_path / "absent"): "no such folder",
        str(tmp_path / "none"): "metrics.jsonl is missing",
        str(empty): "no logged step yet",
        str(rubbish): "no logged step yet",
        str(runs[0] / "metrics.jsonl"): "no such folder",
    }
    for place, message in cases.items():
        for arguments in ([place], [str(runs[0]), place]):
            assert main([*arguments, "--output", str(tmp_path / "page.html")]) == 1
            error = capsys.readouterr().err
            assert error.startswith("error: ") and message in error and place in error and "Traceback" not in error
    assert main([str(runs[0]), str(runs[0])]) == 1
    assert "named twice" in capsys.readouterr().err
    assert main([str(runs[0]), "--output", str(tmp_path / "absent" / "page.html")]) == 1
    assert "absent" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists() and not (empty / "report.html").exists()
