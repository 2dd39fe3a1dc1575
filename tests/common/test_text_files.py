"""Text as files really have it: halves of emojis, other encodings, NaN, blanks, two lists in one file."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os

import pytest

from chatbridge.common import json_stream
from chatbridge.common.documents import DocumentError
from chatbridge.common.json_stream import json_entries
from chatbridge.common.ledger import Ledger, LedgerEntry
from chatbridge.common.logging import EventLog
from chatbridge.conversation import Text, tokenize
from chatbridge.datasets import AnnotationFile, Record, TaskKind
from chatbridge.datasets.base import sample_errors
from chatbridge.processors.tokenizer import load_tokenizer
from tests import tiny
from tests.datasets.tools import TOKENIZER, folder_set, picture, shards, stream, take, tar_bytes, write_folder

HALF, WHOLE, MARK = "\ud83d", "\ud83d\ude00", "\ufffd"


def entries_of(text: str | bytes, lines: bool = False) -> list:
    data = text if isinstance(text, bytes) else text.encode()
    found = list(json_entries(io.BytesIO(data), "a.json", lines))
    for value, start, end in found:
        piece = data[start:end].decode("utf-8", "surrogateescape")
        assert json.dumps(json.loads(piece)) == json.dumps(value)
    return [value for value, _, _ in found]


@pytest.mark.parametrize("piece", [1, 3, 64, 1 << 20])
def test_lists_are_read_in_pieces_of_any_size(monkeypatch, piece):
    monkeypatch.setattr(json_stream, "CHUNK", piece)
    values = [{"a": "naïve 😀 \\ud83d"}, [], {}, "x" * 200, 12345, -1.5e-3, None, True, {"b": [{"c": "]}"}]}]
    for indent, ascii_only in ((None, True), (1, False)):
        text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
        assert entries_of(" \ufeff " + text + "\n ") == values
        lines = "\r\n".join(json.dumps(value, indent=indent, ensure_ascii=ascii_only) for value in values)
        assert entries_of(lines, True) == values == entries_of("\n\n" + lines + "\n \n", True)
    assert entries_of("[ ]") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]\n[3]", "line 2: more behind the end of the list, beginning with '.';"),
        ("[1, 2] x", "more behind the end of the list"),
        ("[1, 2],", "more behind the end of the list"),
        ("[1,]", "entry 1: Expecting value"),
        ("[1\n2]", "line 2: ',' or ']' expected behind entry 0, found '2'"),
        ("[,1]", "entry 0: Expecting value"),
        ('[{"a": 1}, {"a": ', "entry 1: .*is the file cut off"),
        ('[{"a": 1}, {"a": "b', "entry 1: .*is the file cut off"),
        ("[1", "the list is not closed; is the file cut off"),
        ("", "is empty"),
        ("hello", "is not a JSON list: it starts with 'hello'"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"a": ' + "[" * 5000 + "]" * 5000 + "}]", "entry 0 is nested too deeply"),
        ("[1, " + "9" * 5000 + "]", "entry 1: Exceeds the limit"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\xff\xfe[\0]\0", "is not UTF-8 text"),
    ],
)
def test_files_that_are_no_list(text, said):
    with pytest.raises(DocumentError, match=f"(?s)a.json: .*{said}"):
        entries_of(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1} {"a": 2}\n', "line 1: entry 0 is followed by '{' on its line"),
        ('{"a": 1}\n{"a": 2} rubbish\n', "line 2: entry 1 is followed by 'r'"),
        ('{"a": 1}\nrubbish\n', "line 2: entry 1: Expecting value"),
        ('{"a": 1},\n{"a": 2}\n', "followed by ','"),
        ('{"a": 1}\n{"a"\n', "line 3: entry 1: .*cut off"),
    ],
)
def test_files_that_are_no_json_lines(text, said):
    with pytest.raises(DocumentError, match=said):
        entries_of(text, True)


def test_an_entry_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    monkeypatch.setattr(json_stream, "MAX_ENTRY", 1000)
    endless = gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b'["' + b"a" * 10_000_000)))
    with pytest.raises(DocumentError, match="more than 1,000 characters"):
        list(json_entries(endless, "a.json"))
    assert endless.tell() < 10_000


# Records


@pytest.mark.parametrize(
    "value", [None, float("nan"), float("inf"), float("-inf"), "", " \n", [], [None], ["", float("nan")]]
)
def test_what_says_nothing_is_missing(value):
    entry = {"image_id": "a.jpg", "caption": value, "question": value, "text": value, "conversations": value}
    record = Record.parse({**entry, "references": value, "group": value, "id": value})
    assert (record.captions, record.pairs, record.ocr, record.turns) == ((), (), (), ())
    assert (record.references, record.group, record.id) == ((), "", "a.jpg")
    assert Record.parse({"question": "q", "answer": value}).pairs == (("q", ()),)
    assert Record.parse({"caption": "x", "desc": value}).captions == ("x",)
    for kind in ("ti-cap", "ti-shortqa", "ti-ocr", "ti-conv", "ti-det"):
        with pytest.raises(ValueError, match="^lacks "):
            record.check(TaskKind.parse(kind))


def test_words_that_look_like_nothing_are_words():
    assert Record.parse({"caption": ["nan", float("nan"), "None"]}).captions == ("nan", "None")
    assert Record.parse({"question": "null", "answer": "NaN"}).pairs == (("null", ("NaN",)),)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (False, "False"), (0.0, "0.0"), ("0", "0"), (10**400, None)])
def test_nothing_and_no_are_answers(value, text):
    text = text or str(value)
    record = Record.parse({"image_id": "a", "question": "How many?", "answer": value, "group": value})
    record.check(TaskKind.parse("ti-shortqa"))
    assert record.pairs == (("How many?", (text,)),) and record.group == text
    several = Record.parse({"question": ["q", "r"], "answer": [value, [value, "x"]], "references": [value]})
    assert several.pairs == (("q", (text,)), ("r", (text, "x"))) and several.references == (text,)


@pytest.mark.parametrize("blank", ["", " ", None, [], [""], {}, {"a": 1}, 1.5, float("nan")])
def test_keys_that_nobody_asks_for_refuse_nothing(tmp_path, blank):
    needed = {
        "ti-cap": {"image_id": "0.jpg", "caption": "x"},
        "ti-shortqa": {"image_id": "0.jpg", "question": "q", "answer": "a"},
        "ti-ocr": {"image_id": "0.jpg", "text": "x"},
        "tva-conv": {
            "video_id": "v", "audio_id": "a",
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        },
    }  # fmt: skip
    every = ["caption", "desc", "question", "answer", "text", "conversations", "references", "group", "user_id"]
    every += ["image_id", "video_id", "audio_id", "alt_text", "image_text"]
    for kind, entry in needed.items():
        unused = {key: blank for key in every if key not in entry and key != "image_text"}
        if kind == "ti-shortqa":
            unused.pop("answer", None)
        if kind == "ti-cap":
            unused.pop("desc")
        (tmp_path / "a.json").write_text(json.dumps([{**unused, **entry}]))
        (record,) = AnnotationFile(tmp_path / "a.json", TaskKind.parse_all(kind))
        assert record.id in ("0.jpg", "v")


def test_tars_may_have_any_keys_too(tmp_path):
    odd = {"text": "", "question": [], "conversations": "no", "references": {"a": 1}, "user_id": {}, "group": []}
    odd["id"] = ""
    ids = [{"image_id": value} for value in ([], "", 1.5, {"a": 1}, True, float("nan"), [None])]
    entries = [{**odd, **more, "caption": "a picture"} for more in ids]
    packed = [{f"{i}.jpg": picture(i), f"{i}.json": json.dumps(entry).encode()} for i, entry in enumerate(entries)]
    packed.append({"t.jpg": picture(1), "t.json": b'{"caption": NaN}', "t.txt": b"\xef\xbb\xbfa picture\r\n"})
    packed.append({"u.jpg": picture(1), "u.txt": "a picture".encode("utf-16")})
    (tmp_path / "0.tar").write_bytes(tar_bytes(packed))
    for access in ("number", "sequence"):
        (batch,) = take(stream([shards(tmp_path, access=access, shuffle=0, batch_size=9)], 1), 1)
        assert batch.ids == [*map(str, range(7)), "t", "u"] and not batch.ledger
    assert [shards(tmp_path).record(i).captions for i in range(9)] == [("a picture",)] * 9


# Text that cannot be written


def test_halves_of_emojis_never_reach_a_tokenizer():
    tokenizer = load_tokenizer(TOKENIZER)
    made = tokenize("x", [Text(f"a {HALF} b"), Text(HALF + WHOLE, supervised=True)], tokenizer, {})
    whole = tokenize("x", [Text(f"a {MARK} b"), Text(f"{MARK}😀", supervised=True)], tokenizer, {})
    assert (made.input_ids, made.labels) == (whole.input_ids, whole.labels)


def test_records_can_be_written():
    turns = [{"from": "human", "value": HALF}, {"from": "gpt", "value": WHOLE}]
    entry = {"id": HALF, "caption": [HALF, "x"], "question": f"q{HALF}", "answer": HALF, "text": HALF}
    record = Record.parse({**entry, "conversations": turns, "references": HALF, "group": HALF, "image_text": HALF})
    repr(record).encode()
    assert record.turns == (("human", MARK), ("assistant", "😀")) and record.id == record.group == MARK
    assert Record.parse({"image_id": "caf\udce9.jpg"}).files == {"image": ("caf\udce9.jpg",)}  # its name on the disk
    assert Record.parse({"image_id": "caf\udce9.jpg"}).id == f"caf{MARK}.jpg"


def test_other_encodings_are_repaired_and_told(tmp_path, caplog):
    listed = [{"image_id": "0.jpg", "caption": "café"}, {"image_id": "1.jpg", "caption": "naïve 😀"}]
    latin = json.dumps(listed[:1], ensure_ascii=False).encode("latin-1")[:-1] + b", " + json.dumps(
        listed[1], ensure_ascii=False
    ).encode() + b"]"  # fmt: skip
    (tmp_path / "a.json").write_bytes(latin)
    with caplog.at_level(logging.WARNING, "chatbridge"):
        records = AnnotationFile(tmp_path / "a.json", TaskKind.parse_all("ti-cap"))
    assert [record.captions[0] for record in records] == [f"caf{MARK}", "naïve 😀"]
    assert "not all of it is UTF-8" in caplog.text


@pytest.mark.parametrize("access", ["folder", "number", "sequence"])
@pytest.mark.parametrize("workers", [0, 1])
def test_reading_goes_on_past_odd_text(tmp_path, access, workers):
    names = [f"half {HALF}", "café".encode().decode("latin-1"), "x"]
    if access == "folder":
        listed = json.loads(write_folder(tmp_path, 6).read_text())
        for entry, name in zip(listed, names, strict=False):
            entry |= {"id": name, "caption": f"a red ball {name}"}
        listed[4]["image_id"] = HALF + ".jpg"  # no such file
        (tmp_path / "list.json").write_text(json.dumps(listed))
        dataset = folder_set(tmp_path)
    else:
        packed = [{f"{i}.jpg": picture(i), f"{i}.json": json.dumps({"caption": n, "id": n}).encode()}
                  for i, n in enumerate(names * 2)]  # fmt: skip
        packed += [{"l.jpg": picture(1), "l.json": b'{"caption": "caf\xe9"}'}, {"n.jpg": picture(1), "n.txt": b"\xe9"}]
        packed += [{"bad.jpg": b"", "bad.json": json.dumps({"caption": "x", "id": HALF}).encode()}]
        (tmp_path / "0.tar").write_bytes(tar_bytes(packed))
        dataset = shards(tmp_path, access=access)
    batches = take(stream([dataset], 8, workers=workers), 8)
    ledger = Ledger(tmp_path / "ledger.jsonl", 1.0)
    for batch in batches:
        "".join(batch.ids).encode()
        ledger.add(batch.sources, batch.ledger)
    assert any(MARK in name for batch in batches for name in batch.ids)
    rows = tiny.json_lines(tmp_path / "ledger.jsonl")
    assert rows and all(row["reason"] for row in rows)


def test_the_ledger_writes_any_name(tmp_path):
    Ledger(tmp_path / "l.jsonl", 1.0).add(["a"] * 4, [LedgerEntry("a", HALF, "caf\udce9.jpg", f"no {HALF}", "é")])
    (row,) = map(json.loads, (tmp_path / "l.jsonl").read_text(encoding="utf-8").splitlines())
    assert (row["sample_id"], row["file"], row["replaced_by"]) == (HALF, "caf\udce9.jpg", "é")


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("two\nlines"), MemoryError(), RecursionError("deep")])
def test_whatever_goes_wrong_with_a_sample_costs_the_sample(tmp_path, monkeypatch, error):
    write_folder(tmp_path, 8)
    dataset = folder_set(tmp_path)
    original = type(dataset.parts.task).render

    def render(self, record, *more):
        if record.id.endswith("3"):
            raise error
        return original(self, record, *more)

    monkeypatch.setattr(type(dataset.parts.task), "render", render)
    batches = take(stream([dataset], 4), 4)
    (first, *_) = [entry for batch in batches for entry in batch.ledger]
    assert first.sample_id.endswith("3") and first.reason.startswith(f"cannot be used ({type(error).__name__}")
    assert "\n" not in first.reason
    with pytest.raises(AssertionError), sample_errors:
        raise AssertionError


@pytest.mark.parametrize("task", ["alignment", "instruction"])
def test_a_run_goes_on_and_resumes_past_odd_text(tmp_path, task):
    tree = tiny.make_config(tmp_path, task, max_steps=4, checkpoint_every=2, num_workers=1)
    name, key = ("images", "caption") if task == "alignment" else ("chats", "id")
    tree["datasets"] = {name: tree["datasets"][name]}
    listed = json.loads((tmp_path / "media" / f"{name}.json").read_text())
    for entry in listed[:3]:
        entry[key] = f"a picture {HALF}"
    if task == "instruction":
        listed[4]["conversations"][1]["value"] = HALF
    (tmp_path / "media" / f"{name}.json").write_text(json.dumps(listed))
    assert tiny.run(tmp_path, tree, "--options", "run.stop_at=2") == 0
    assert tiny.run(tmp_path, tree) == 0
    assert not (tmp_path / "output" / "ledger.jsonl").exists()


def test_a_run_that_ends_at_an_odd_name_says_so(tmp_path, capsys):
    tree = tiny.make_config(tmp_path, max_steps=4)
    tree["datasets"] = {"images": tree["datasets"]["images"]}
    listed = json.loads((tmp_path / "media" / "images.json").read_text())
    for entry in listed:
        entry["image_id"] = "caf\udce9.jpg"
    (tmp_path / "media" / "images.json").write_text(json.dumps(listed))
    assert tiny.run(tmp_path, tree) == 1
    said = capsys.readouterr().err
    assert "10 samples in a row cannot be used; the last: caf\ufffd.jpg: no such image" in said
    events = (tmp_path / "output" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert "caf\ufffd.jpg" in json.loads(events[-1])["text"]
    EventLog(tmp_path).write(1, "failed", "caf\udce9.jpg")  # a plugin's own words
    assert json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8"))["text"] == "caf\udce9.jpg"


@pytest.mark.parametrize("kind", ["pipe", "folder", "pointer"])
def test_what_is_no_annotation_file(tmp_path, kind):
    file = tmp_path / "a.json"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="a.json: is a (pipe|folder|Git LFS pointer)"):
        AnnotationFile(file)


def test_empty_lists_in_a_configuration(tmp_path, capsys):
    for keys, said in (
        ({"annotations": []}, "datasets.images: annotations is empty; name at least one file"),
        ({"conditions": []}, "datasets.images: conditions is empty"),
    ):
        tree = tiny.make_config(tmp_path)
        tree["datasets"]["images"] |= keys
        assert tiny.run(tmp_path, tree, "--check") == 1
        assert said in capsys.readouterr().err
