"""Jobs of the corpus commands: restart, limits, duplicates, several processes, crashes, and the tables they read."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_prep.prep import pool, tables
from dataset_prep.prep.items import CRASH, Drop, Item
from dataset_prep.prep.job import Job, Options, sha256
from dataset_prep.prep.texts import captions
from tests.dataset_prep.work import Shout, words
from tests.patience import until
from tests.tiny import json_lines

QUIET = Options(quiet=True)


def job(folder: Path, work: Shout | None = None, count: int = 25, **settings) -> Job:
    work = work or Shout(folder / "trace")
    if not (folder / "source").exists():
        (folder / "source").touch()
    settings = {"settings": {"what": 1}, **settings}
    return Job("test", folder / "out", lambda: words(count), work, chunk=4, inputs=[folder / "source"], **settings)


def listing(folder: Path) -> list[dict]:
    return json.loads((folder / "out" / "annotations.json").read_text())


def dropped(folder: Path) -> list[dict]:
    return json_lines(folder / "out" / "dropped.jsonl")


def traced(folder: Path) -> list[int]:
    return sorted(map(int, (folder / "trace").read_text().split()))


def test_a_job_counts_and_hashes(tmp_path):
    manifest = job(tmp_path, Shout(tmp_path / "trace", refuse="w3")).run(QUIET)
    assert manifest["counts"] == {"read": 25, "kept": 24, "dropped": 1}
    assert manifest["reasons"] == {"refused": 1}
    entries = listing(tmp_path)
    assert [e["id"] for e in entries] == [f"w{n}" for n in range(25) if n != 3]
    assert entries[0]["text"] == "WORD 0 É"
    assert dropped(tmp_path) == [{"id": "w3", "reason": "refused", "detail": "as told", "where": "list: row 3"}]
    out = tmp_path / "out"
    assert manifest["files"] == {name: sha256(out / name) for name in ("annotations.json", "dropped.jsonl")}
    assert manifest["inputs"] == {str(tmp_path / "source"): sha256(tmp_path / "source")}
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert sorted(p.name for p in out.iterdir()) == ["annotations.json", "dropped.jsonl", "manifest.json"]


def test_an_interrupted_job_goes_on_where_it_stopped(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    job(whole).run(QUIET)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, Shout(tmp_path / "trace", stop_at=4)).run(QUIET)
    assert not (tmp_path / "out" / "annotations.json").exists()
    assert traced(tmp_path) == [0, 1, 2, 3]
    job(tmp_path).run(QUIET)
    assert traced(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    assert (tmp_path / "out" / "annotations.json").read_bytes() == (whole / "out" / "annotations.json").read_bytes()


@pytest.mark.parametrize("torn", ["", '{"part": 3, "kept": [{"id"', '{"part": 3}'])
def test_half_a_line_in_the_journal_is_forgotten(tmp_path, torn):
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, Shout(tmp_path / "trace", stop_at=3)).run(QUIET)
    with (tmp_path / "out" / ".progress.jsonl").open("a") as file:
        file.write(torn)  # as when a kill comes in the middle of writing
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, Shout(tmp_path / "trace", stop_at=5)).run(QUIET)
    assert job(tmp_path).run(QUIET)["counts"]["kept"] == 25
    assert traced(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    assert [e["id"] for e in listing(tmp_path)] == [f"w{n}" for n in range(25)]


def test_a_killed_job_goes_on_where_it_stopped(tmp_path):
    script = (
        "import sys; from pathlib import Path; from dataset_prep.prep.job import Job, Options; "
        "from tests.dataset_prep.work import Shout, words; folder = Path(sys.argv[1]); (folder / 'source').touch(); "
        "Job('test', folder / 'out', lambda: words(25), Shout(folder / 'trace', kill_at=3), chunk=4, "
        "inputs=[folder / 'source'], settings={'what': 1}).run(Options(quiet=True))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert traced(tmp_path) == [0, 1, 2]
    assert job(tmp_path).run(QUIET)["counts"]["kept"] == 25
    assert traced(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "out" / ".progress.jsonl").exists()


def test_the_bar_counts_what_was_done_before(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, Shout(tmp_path / "trace", stop_at=3)).run(QUIET)
    capsys.readouterr()
    job(tmp_path, Shout(tmp_path / "trace", refuse="w20"), total=lambda: 25).run(Options())
    said = capsys.readouterr().err
    assert "100%" in said and "25/25" in said and "left_out=1" in said


def test_other_settings_do_not_mix_with_an_old_result(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, Shout(tmp_path / "trace", stop_at=2)).run(QUIET)
    with pytest.raises(ValueError, match=r"beginning of another run \(settings: .*--overwrite"):
        job(tmp_path, settings={"what": 2}).run(QUIET)
    job(tmp_path).run(QUIET)
    with pytest.raises(ValueError, match=r"result of another run \(limit: null then, 3 now\)"):
        job(tmp_path).run(Options(quiet=True, limit=3))
    (tmp_path / "source").write_text("changed")
    with pytest.raises(ValueError, match="inputs"):
        job(tmp_path).run(QUIET)
    assert job(tmp_path).run(Options(quiet=True, limit=3, overwrite=True))["counts"]["kept"] == 3


def test_a_finished_job_is_not_done_again(tmp_path):
    first = job(tmp_path).run(QUIET)
    assert job(tmp_path).run(QUIET) == first
    assert len(traced(tmp_path)) == 7


def test_the_limit_counts_samples_read(tmp_path):
    manifest = job(tmp_path, Shout(tmp_path / "trace", refuse="w1")).run(Options(quiet=True, limit=6))
    assert manifest["counts"] == {"read": 6, "kept": 5, "dropped": 1}


def test_a_second_sample_with_an_id_is_left_out(tmp_path):
    items = [*words(3), Item("w1", {"text": "again"}, {}, "row 3"), Drop("x", "empty caption", "", "row 4")]
    manifest = Job("test", tmp_path / "out", lambda: items, Shout(tmp_path / "trace"), chunk=2).run(QUIET)
    assert manifest["reasons"] == {"duplicate id": 1, "empty caption": 1}
    assert [e["text"] for e in listing(tmp_path)] == ["WORD 0 É", "WORD 1 É", "WORD 2 É"]
    assert [d["id"] for d in dropped(tmp_path)] == ["w1", "x"]


def test_processes_change_nothing_and_a_crash_costs_one_sample(tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    job(alone, Shout(alone / "trace", refuse="w9")).run(QUIET)
    manifest = job(tmp_path, Shout(tmp_path / "trace", crash_on="w9")).run(Options(quiet=True, workers=2))
    assert manifest["reasons"] == {"crashes its reader": 1}
    assert manifest["counts"] == {"read": 25, "kept": 24, "dropped": 1}
    assert dropped(tmp_path)[0]["id"] == "w9"
    assert listing(tmp_path) == listing(alone)


def test_a_crash_that_is_noticed_while_work_is_handed_out(tmp_path, monkeypatch):
    made, usual = [], pool._pool
    monkeypatch.setattr(pool, "_pool", lambda workers: made.append(usual(workers)) or made[-1])

    def pieces():
        yield 0, [Item("w0", {"text": "word"}, {}, "row 0")]
        until(lambda: made[0]._broken)
        yield 1, [Item("w1", {"text": "word"}, {}, "row 1")]

    parts = dict(pool.run_pieces(Shout(tmp_path / "trace", crash_on="w0"), pieces(), 2))
    assert [drop.reason for drop in parts[0].dropped] == [CRASH]
    assert parts[1].read == 1 and not parts[1].dropped


# Tables


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


ROWS = [
    {"caption": 'a "quoted", dog', "url": "http://x/1"},
    {"caption": "two\nlines ☃", "url": "http://x/2"},
    {"caption": "", "url": "http://x/3"},
    {"caption": "one\n\nthree\tlines", "url": "http://x/4"},
]


def test_every_format_gives_the_same_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["caption", "url"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    write(tmp_path, "a.json", "\ufeff" + json.dumps(ROWS, indent=1, ensure_ascii=False))
    write(tmp_path, "b.json", json.dumps({"info": 1, "annotations": ROWS}))
    write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    with gzip.open(tmp_path / "a.tsv.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "a.tsv").read_text(encoding="utf-8"))
    for name in ("a.csv", "a.tsv", "a.json", "b.json", "a.jsonl", "a.parquet", "a.tsv.gz"):
        assert list(tables.rows(tmp_path / name)) == list(enumerate(ROWS)), name
        assert tables.count(tmp_path / name) == 4


def test_a_tsv_without_a_header_line(tmp_path):
    file = write(tmp_path, "Train_GCC-training.tsv", "a dog\thttp://x/1\na cat\thttp://x/2\n")
    assert [row["caption"] for _, row in tables.rows(file)] == ["a dog", "a cat"]


def test_a_tsv_of_plain_text_keeps_its_quotation_marks(tmp_path):
    captions = ['"stop" says a sign', 'a 5" pipe', '"unclosed', "it's", 'says "stop"']
    lines = ["caption\turl", *(f"{c}\thttp://x/{n}" for n, c in enumerate(captions)), "short", '"too short']
    file = write(tmp_path, "a.tsv", "\n".join([*lines, "last\thttp://x/9"]) + "\n")
    found = [row for _, row in tables.rows(file)]
    assert [row["caption"] for row in found] == [*captions, "short", '"too short', "last"]
    assert [row.get("url") for row in found[5:]] == [None, None, "http://x/9"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "", "is empty"),
        ("a.json", "hello", "is not a JSON list: it starts with 'hello'"),
        ("a.json", '[{"a": 1}, {"a": ', "entry 1: .*cut off"),
        ("a.json", '[{"a": 1}', "the list is not closed"),
        ("a.json", '[{"a": 1}][{"a": 2}]', "more behind the end of the list"),
        ("a.json", '{"data": [{"a": 1}]} x', "is not valid JSON: Extra data"),
        ("a.json", '{"data": ' + "[" * 9000, "is nested too deeply"),
        ("a.json", "version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("a.json", '{"a": 1}', "none of the keys data, annotations.*it has: a"),
        ("a.jsonl", '{"a": 1}\n{"a" 2}\n', "is not valid JSON: line 2"),
        ("a.jsonl", '{"a": 1} {"a": 2}\n', "line 1: entry 0 is followed by"),
        ("a.csv", "", "is empty; its first line"),
        ("a.txt", "x", "cannot read '.txt'"),
        ("a.parquet", "no", "is not a readable Parquet file"),
    ],
)
def test_a_bad_table_is_named_with_the_place(tmp_path, name, text, said):
    file = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=said) as error:
        list(tables.rows(file))
    assert str(file) in str(error.value)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'chatbridge\[data\]'"):
        list(tables.rows(tmp_path / "a.parquet"))


def test_a_row_with_too_many_fields_is_told_apart(tmp_path):
    file = write(tmp_path, "a.csv", "name,caption\na,b\na,b,c\n")
    assert [row.get("") for _, row in tables.rows(file)] == [None, "has 3 fields, the header has 2"]


# Captions


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (None, []),
        ("  a  dog\n runs\t", ["a dog runs"]),
        ("...", []),
        ("-", []),
        ("\x00a\u200b dog", ["a dog"]),
        ("half \ud83d a pair", ["half \ufffd a pair"]),
        (float("nan"), []),
        (["nan", float("nan"), None, float("inf"), 0], ["nan", "0"]),
        (["a", "", "a ", "b"], ["a", "b"]),
        (7, ["7"]),
        ("naïve “quoted” 犬", ["naïve “quoted” 犬"]),
    ],
)
def test_captions_are_cleaned(value, texts):
    assert captions(value) == texts


@pytest.mark.parametrize("value", [{"a": 1}, [["a"]], True])
def test_a_caption_of_another_type_is_refused(value):
    with pytest.raises(ValueError, match="must be text"):
        captions(value)
