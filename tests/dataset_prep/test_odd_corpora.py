"""Corpora as people really have them: macOS' leftovers, NaN, 0, other encodings, links and names that lead away."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile

import pytest

import train
from dataset_prep import (
    audiocaps,
    cc_sbu_laion,
    coco_caption,
    extract_frames,
    multis,
    shards,
    validate,
    wavcaps,
    webvid,
)
from dataset_prep.prep import tables
from tests import tiny
from tests.dataset_prep import corpora
from tests.dataset_prep.corpora import QUICK, dropped, entries, fails, manifest, run

NAN = float("nan")


def written(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


# Tars


def mac_tar(path, count, media=True):
    """As macOS' tar writes one: a resource fork before every member, folders, what Finder leaves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in range(count):
            key = f"{number:04}"
            pairs = [(f"{key}.jpg", corpora.jpeg_bytes()), ("PaxHeader/x.jpg", b"x"), (f"{key}.txt", b"a picture")]
            for name, data in pairs if media else pairs[1:]:
                folder, slash, base = name.rpartition("/")
                fork = f"{folder}{slash}._{base}", b"\0\5\x16\7" + b"\0" * 80
                for member, what in (fork, (".DS_Store", b"x"), (name, data)):
                    info = tarfile.TarInfo(member)
                    info.size = len(what)
                    tar.addfile(info, io.BytesIO(what))
    return path


def test_tars_are_grouped_as_training_groups_them(tmp_path):
    mac_tar(tmp_path / "mac" / "00000.tar", 12)
    (tmp_path / "mac" / "._00000.tar").write_bytes(b"\0\5\x16\7")
    run(cc_sbu_laion, tmp_path / "mac", "--out", tmp_path / "out")
    assert manifest(tmp_path / "out")["counts"] == {"read": 12, "kept": 12, "dropped": 0}
    tree = tiny.make_config(tmp_path, max_steps=3)
    for number, folder in enumerate((tmp_path / "mac", tmp_path / "out")):
        tree["datasets"] = {"t": {"builder": "webdataset", "folder": str(folder), "kind": "ti-cap", "batch_size": 4}}
        tree["run"]["output_dir"] = str(tmp_path / f"run{number}")
        assert tiny.run(tmp_path, tree) == 0
        assert not (tmp_path / f"run{number}" / "ledger.jsonl").exists()
    assert json.loads((tmp_path / "out" / "index.json").read_text())["samples"] == 12


def test_what_training_could_not_use_is_told_before(tmp_path):
    """Of several pictures the one that training would take is looked at; captions come from where training has them."""
    good = corpora.jpeg_bytes()
    members = {
        "a.jpg": good, "a.seg.png": b"no picture", "a.txt": b"a", "b.jpg": good, "b.json": b'{"caption": NaN}',
        "c.jpg": good, "c.json": b'{"caption": NaN}', "c.txt": b"c", "d.jpg": good, "d.json": b'{"title": "d"}',
        "e.jpg": good, "e.json": b'{"caption": {"a": 1}}', "f.jpg": good, "f.txt": b"\xef\xbb\xbf...",
        "g.jpg": good, "g.json": b'{"caption": 0, "text": "", "image_id": []}', "h.jpg": good, "h.json": b"[" * 9000,
    }  # fmt: skip
    corpora.write_tar(tmp_path / "in" / "0.tar", members)
    run(cc_sbu_laion, tmp_path / "in", "--out", tmp_path / "out", "--check", "decode")
    assert dropped(tmp_path / "out") == {
        "b": "empty caption", "d": "empty caption", "e": "malformed annotation", "f": "empty caption",
        "h": "malformed annotation",
    }  # fmt: skip
    assert manifest(tmp_path / "out")["counts"]["kept"] == 3


@pytest.mark.parametrize("damage", ["pipe", "folder", "gzip", "pax", "rubbish"])
def test_tars_that_are_none_stay_out(tmp_path, damage):
    source = tmp_path / "in"
    whole = mac_tar(source / "0.tar", 2).read_bytes()
    bad = source / "1.tar"
    if damage == "pipe":
        os.mkfifo(bad)
    elif damage == "folder":
        bad.mkdir()
    else:
        header = tarfile.TarInfo("PaxHeader/x")
        header.type, header.size = b"x", 13
        pax = header.tobuf() + b"0 path=a.jpg\n".ljust(512, b"\0") + whole
        bad.write_bytes({"gzip": gzip.compress(whole), "pax": pax, "rubbish": b"no tar" * 200}[damage])
    run(cc_sbu_laion, source, "--out", tmp_path / "out")
    assert dropped(tmp_path / "out") == {"1.tar": "damaged tar"}
    assert [line["file"] for line in json.loads((tmp_path / "out" / "index.json").read_text())["shards"]] == [
        "shards/0.tar"
    ]


def test_a_command_that_keeps_nothing_fails_and_writes_no_index(tmp_path, capsys):
    mac_tar(tmp_path / "in" / "0.tar", 3, media=False)
    for _ in range(2):  # when it is done already, too
        said = fails(capsys, cc_sbu_laion, tmp_path / "in", "--out", tmp_path / "out")
        assert "nothing was kept; see" in said
        assert dropped(tmp_path / "out") == {f"{n:04}": "missing media" for n in range(3)}
        assert not (tmp_path / "out" / "index.json").exists()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video")
    assert "nothing was kept" in fails(
        capsys, extract_frames, tmp_path / "videos", "--out", tmp_path / "f", "--fps", "1"
    )
    links = written(tmp_path / "l.json", [{"url": "http://x/1", "caption": NAN}])
    assert "nothing was kept" in fails(capsys, cc_sbu_laion, links, "--out", tmp_path / "l")


# Names and links


@pytest.fixture
def media(tmp_path):
    """A media folder with a picture, a link that stays, and links that leave; a secret beside it."""
    corpora.jpeg(tmp_path / "outside" / "secret.jpg")
    root = tmp_path / "images"
    corpora.jpeg(root / "sub" / "a.jpg")
    (root / "stays.jpg").symlink_to("sub/a.jpg")
    (root / "leaves.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (root / "folder").symlink_to(tmp_path / "outside")
    return root


@pytest.mark.parametrize("place", ["link", "copy"])
def test_names_are_files_below_the_media_folder(tmp_path, media, place):
    out = tmp_path / "out"
    names = [".", "..", "", "./", "sub/..", "sub", "leaves.jpg", "folder/secret.jpg", "folder", "../outside/secret.jpg"]
    names += [str(tmp_path / "outside" / "secret.jpg"), "x" * 300, "a\0b", "half\ud83d", "sub/a.jpg", "stays.jpg"]
    table = written(tmp_path / "t.json", [{"image": name, "caption": f"n {i}"} for i, name in enumerate(names)])
    for check in ("exists", "header"):
        run(cc_sbu_laion, table, "--media", media, "--out", out, "--place", place, "--check", check, "--overwrite")
        assert [entry["image_id"] for entry in entries(out)] == ["sub/a.jpg", "stays.jpg"]
        if place == "copy":
            copied = {p.relative_to(out / "images").as_posix() for p in (out / "images").rglob("*") if p.is_file()}
            assert copied == {"sub/a.jpg", "stays.jpg"} and not (out / "images" / "stays.jpg").is_symlink()


def test_folders_of_frames_are_copied_as_what_they_are(tmp_path):
    corpora.jpeg(tmp_path / "secret.jpg")
    for name in ("good", "leaves"):
        for frame in range(2):
            corpora.jpeg(tmp_path / "videos" / name / f"{frame}.jpg")
    (tmp_path / "videos" / "leaves" / "9.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "videos" / "good" / "notes.txt").write_text("mine")
    (tmp_path / "videos" / "good" / "deep").mkdir()
    table = corpora.write_csv(tmp_path / "t.csv", [{"videoid": name, "name": "x"} for name in ("good", "leaves", ".")])
    run(webvid, table, "--media", tmp_path / "videos", "--out", tmp_path / "o", "--place", "copy")
    assert [entry["video_id"] for entry in entries(tmp_path / "o")] == ["good"]
    assert dropped(tmp_path / "o") == dict.fromkeys(["leaves", "."], "path outside the media folder")
    assert sorted(p.name for p in (tmp_path / "o" / "videos" / "good").iterdir()) == ["0.jpg", "1.jpg"]


def test_links_do_not_lead_into_shards(tmp_path, media):
    listed = [{"image_id": name, "caption": "x"} for name in ("leaves.jpg", "folder/secret.jpg", "stays.jpg", ".")]
    annotations = written(tmp_path / "a.json", listed)
    run(shards, "--annotations", annotations, "--kind", "ti-cap", "--media", media, "--out", tmp_path / "s")
    assert manifest(tmp_path / "s")["reasons"]["path outside the media folder"] >= 2
    assert manifest(tmp_path / "s")["counts"]["kept"] == 1


# Values


def test_nan_is_missing_and_the_word_is_not(tmp_path):
    for name in range(5):
        corpora.jpeg(tmp_path / "coco" / f"{name}.jpg")
    captions = [NAN, "nan", [NAN, "a cat"], None, float("inf")]
    listed = [{"image_id": f"{i}.jpg", "caption": caption, "desc": NAN} for i, caption in enumerate(captions)]
    written(tmp_path / "img_cap_coco.json", listed)
    run(multis, tmp_path, "--out", tmp_path / "out", "--only", "coco_caption")
    assert [e["caption"] for e in entries(tmp_path / "out" / "coco_caption")] == ["nan", "a cat"]
    assert "NaN" not in (tmp_path / "out" / "coco_caption" / "annotations.json").read_text()
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"videoid": v, "name": n} for v, n in ((0.0, "zero"), (1.0, None), (2.0, "nan"), (NAN, "gone"))]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("0", "1", "2"):
        corpora.video(tmp_path / "videos" / f"{name}.mp4")
    run(webvid, tmp_path / "t.parquet", "--media", tmp_path / "videos", "--out", tmp_path / "w")
    assert {e["id"]: e["caption"] for e in entries(tmp_path / "w")} == {"0": "zero", "2": "nan"}
    assert dropped(tmp_path / "w") == {"1": "empty caption", "": "malformed annotation"}


@pytest.mark.parametrize("answer", [0, False, 0.0, "0"])
def test_0_is_an_answer(tmp_path, answer):
    corpora.jpeg(tmp_path / "coco" / "0.jpg")
    corpora.jpeg(tmp_path / "vg" / "0.jpg")
    written(tmp_path / "vg_qa.json", [{"id": 0, "qas": [{"qa_id": 0, "question": "How many?", "answer": answer}]}])
    question = {"question_id": 0, "image_id": 0, "question": "How many?"}
    note = {"question_id": 0, "image_id": 0, "multiple_choice_answer": answer, "answers": [{"answer": answer}] * 3}
    written(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": [question]})
    written(tmp_path / "v2_mscoco_train2014_annotations.json", {"annotations": [note]})
    corpora.jpeg(tmp_path / "coco" / "train2014" / "COCO_train2014_000000000000.jpg")
    run(multis, tmp_path, "--out", tmp_path / "out", "--only", "vqav2,vg_qa")
    for name in ("vqav2", "vg_qa"):
        (entry,) = entries(tmp_path / "out" / name)
        assert entry["answer"] == str(answer) and entry["question"] == "How many?"
    listed = [{"image_id": "0.jpg", "question": "How many?", "answer": [answer, answer, 1]}]
    written(tmp_path / "img_vqa_vqav2.json", listed)
    run(multis, tmp_path, "--out", tmp_path / "again", "--only", "vqav2")
    (entry,) = entries(tmp_path / "again" / "vqav2")
    assert entry["answer"] == str(answer) and entry["references"] == [str(answer)] * 2 + ["1"]


def test_tables_in_other_encodings(tmp_path):
    corpora.jpeg(tmp_path / "images" / "0.jpg")
    (tmp_path / "t.csv").write_bytes("image,caption\n0.jpg,a café\n".encode("latin-1"))
    run(cc_sbu_laion, tmp_path / "t.csv", "--out", tmp_path / "o")
    assert entries(tmp_path / "o")[0]["caption"] == "a caf\ufffd"
    name = "caf\udce9.jpg"
    corpora.jpeg(tmp_path / "images" / name)
    (tmp_path / "t.csv").write_bytes("image,caption\ncafé.jpg,x\n".encode("latin-1"))
    run(cc_sbu_laion, tmp_path / "t.csv", "--out", tmp_path / "p", "--place", "copy")
    assert entries(tmp_path / "p")[0]["image_id"] == name and (tmp_path / "p" / "images" / name).exists()


def test_a_line_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_LINE", 1000)
    for name in ("a.csv", "a.tsv.gz"):
        data = b"image,caption\n" + b"x" * 5000
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        with pytest.raises(ValueError, match=f"{name}: line 2 has more than 1,000 characters"):
            list(tables.rows(tmp_path / name))


@pytest.mark.parametrize(
    ("command", "name", "tree"),
    [
        (coco_caption, "a.json", {"images": [], "annotations": [{"image_id": 1}, 3]}),
        (coco_caption, "a.json", {"images": 3}),
        (coco_caption, "a.json", {"images": [{"filename": 3, "sentences": 5}]}),
        (audiocaps, "a.jsonl", [1]),
        (webvid, "a.json", [[1], 3, None]),
        (wavcaps, "json_files/FreeSound/fsd_final.json", {"data": [1, [2], {"id": []}]}),
        (multis, "question_answers.json", [{"qas": 3}]),
        (multis, "ocrvqa/dataset.json", {"a": 3}),
        (multis, "train_val_videodatainfo.json", {"videos": [3]}),
        (multis, "v2_mscoco_train2014_annotations.json", {"annotations": [{"question_id": [], "answers": 3}]}),
    ],
)
def test_files_of_another_form_are_one_line(tmp_path, capsys, command, name, tree):
    file = written(tmp_path / name, tree)
    if name.endswith("jsonl"):
        file.write_text("1\n")
    written(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": [{"a": 1}, 3]})
    for folder in ("coco", "vg", "ocrvqa/images", "msrvtt/videos", "audio", "videos"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    source = tmp_path if command in (multis, wavcaps) else file
    more = ["--weight", "ocrvqa=1"] if command is multis else ["--media", tmp_path]
    said = fails(capsys, command, source, "--out", tmp_path / "out", *more)
    assert len(said.splitlines()) == 1, said


# Validation agrees with training


def validated(capsys, *arguments):
    capsys.readouterr()
    status = validate.main([*map(str, arguments), "--json", *QUICK])
    return status, json.loads(capsys.readouterr().out)


def test_what_training_refuses_validation_tells_and_the_other_way_round(tmp_path, capsys):
    tree = tiny.make_config(tmp_path, max_steps=2)
    file = tmp_path / "media" / "images.json"
    listed = json.loads(file.read_text())
    config = tiny.write_yaml(tmp_path, tree)
    cases = {
        "two lists": (json.dumps(listed) + json.dumps(listed), "more behind the end of the list"),
        "one empty list of files": (json.dumps([*listed, {"image_id": [], "caption": "x"}]), "names no file"),
        "nan": (json.dumps([*listed, {"image_id": "0.jpg", "caption": NAN}]), "lacks caption"),
        "deep": (json.dumps(listed)[:-1] + ", " + "[" * 9000 + "]" * 9000 + "]", "nested too deeply"),
        "half an emoji": (json.dumps([*listed, {"image_id": "0.jpg", "caption": "\ud83d"}]), None),
        "blank keys": (json.dumps([{**listed[0], "question": "", "text": [], "references": [], "video_id": ""}]), None),
        "big numbers": (json.dumps([{**listed[0], "id": 10**400, "caption": 10**400}]), None),
    }  # fmt: skip
    for case, (text, said) in cases.items():
        file.write_text(text)
        status, found = validated(capsys, "--cfg-path", config)
        trained = train.main(["--cfg-path", str(config), "--options", f"run.output_dir={tmp_path / case}"])
        told = capsys.readouterr().err
        assert status == trained == (0 if said is None else 1), (case, found, told)
        assert said is None or said in told and any(said in problem["detail"] for problem in found["problems"]), case


def test_samples_that_fail_in_a_tokenizer_are_told(tmp_path, capsys, monkeypatch):
    from chatbridge.processors.tokenizer import SentencePieceTokenizer

    tree = tiny.make_config(tmp_path)
    file = tmp_path / "media" / "images.json"
    listed = json.loads(file.read_text())
    listed[3]["caption"] = ["fine", "a poisonous picture"]
    file.write_text(json.dumps(listed))
    original = SentencePieceTokenizer.encode

    def encode(self, text):
        if "poison" in text:
            raise RuntimeError("bad")
        return original(self, text)

    monkeypatch.setattr(SentencePieceTokenizer, "encode", encode)
    plain = ["--annotations", file, "--kind", "ti-cap", "--media", tmp_path / "media"]
    for command in (["--cfg-path", tiny.write_yaml(tmp_path, tree)], [*plain, "--tokenizer", tiny.TOKENIZER]):
        status, found = validated(capsys, *command)
        assert status == 1 and found["reasons"] == {"sample cannot be written": 1}
        assert found["problems"][0]["index"] == 3 and "RuntimeError: bad" in found["problems"][0]["detail"]
    assert validated(capsys, *plain)[0] == 0
    monkeypatch.undo()
    assert "no tokenizer" in fails(capsys, validate, *plain, "--tokenizer", tmp_path)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_shards_in_sequence_are_looked_at_where_they_are_here(tmp_path, capsys, ending):
    tree = tiny.make_config(tmp_path)
    good = corpora.jpeg_bytes()
    members = {"a.jpg": good, "a.txt": b"a", "b.jpg": good[:200], "b.txt": b"b", "c.jpg": good, "c.json": b"{}"}
    file = corpora.write_tar(tmp_path / "s" / "0.tar", {**members, "d.txt": b"d", "e.jpg": good, "e.txt": b"e"})
    if ending == "tar.gz":
        (tmp_path / "s" / "0.tar.gz").write_bytes(gzip.compress(file.read_bytes()))
    shard = str(tmp_path / "s" / f"0.{ending}")
    tree["datasets"] = {"s": {"builder": "webdataset", "shards": [shard, "pipe:false"], "kind": "ti-cap", "weight": 1}}
    tree["datasets"]["s"]["access"] = "sequence"
    status, found = validated(capsys, "--cfg-path", tiny.write_yaml(tmp_path, tree))
    assert status == 1 and found["good"] == 2 and found["entries"] == 5
    assert [(p["index"], p["reason"], p["file"]) for p in found["problems"]] == [
        (1, "unreadable media", shard), (2, "malformed annotation", shard), (3, "unreadable media", shard)
    ]  # fmt: skip
    assert any("1 shards are read from wherever they are" in note for note in found["notes"])
