"""The commands of image and video corpora, each on a miniature replica of what a user downloads."""

from __future__ import annotations

import json

import pytest

from dataset_prep import audiocaps, cc_sbu_laion, coco_caption, webvid
from tests.dataset_prep import corpora
from tests.dataset_prep.corpora import dropped, entries, fails, loads, manifest, run

# Conceptual Captions, SBU, LAION


def row(key, caption, status="success", **more):
    url = f"http://images/{key}.jpg?a=1,2"
    error = None if status == "success" else "HTTP Error 404: Not Found"
    return {"caption": caption, "url": url, "key": key, "status": status, "error_message": error, **more}


def test_cc_sbu_laion_from_files_that_img2dataset_wrote(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    source = tmp_path / "cc_sbu_dataset"
    rows = [row(f"{n:09d}", caption) for n, caption in enumerate(corpora.ODD_CAPTIONS)]
    rows += [row("000000004", ""), row("000000005", "gone", "failed_to_download"), row("000000006", "no file")]
    rows += [row("000000000", "again")]
    for n in range(5):
        corpora.jpeg(source / "00000" / f"{n:09d}.jpg")
    parquet.write_table(pyarrow.Table.from_pylist(rows), source / "00000.parquet")
    for key, caption in (("000010000", "from a sidecar"), ("000010001", None)):
        corpora.jpeg(source / "00001" / f"{key}.jpg")
        corpora.write_json(source / "00001" / f"{key}.json", row(key, caption))
    (source / "00001" / "000010002.json").write_text("{")
    run(cc_sbu_laion, source, "--out", tmp_path / "cc3m")
    found = loads(tmp_path / "cc3m", "image")
    assert {k: e["caption"] for k, e in found.items()} == {
        "000000000": 'a "quoted", dog; 50% off',
        "000000001": "naïve café – 犬 ☃",
        "000000002": "two lines",
        "000000003": "tab here",
        "000010000": "from a sidecar",
    }
    assert found["000000001"]["image_id"] == "00000/000000001.jpg"
    assert dropped(tmp_path / "cc3m") == {
        "000000004": "empty caption",
        "000000005": "dead link",
        "000000006": "missing media",
        "000000000": "duplicate id",
        "000010001": "empty caption",
        "000010002": "malformed annotation",
    }
    assert manifest(tmp_path / "cc3m")["counts"] == {"read": 11, "kept": 5, "dropped": 6}


@pytest.mark.parametrize("check", ["header", "decode"])
def test_cc_sbu_laion_uses_tars_where_they_are(tmp_path, check):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    source = tmp_path / "laion_dataset"
    cut = corpora.noise_bytes()[:-400]
    members = {}
    for n, caption in enumerate(corpora.ODD_CAPTIONS):
        members |= {f"{n:09d}.jpg": corpora.jpeg_bytes(), f"{n:09d}.txt": caption.encode()}
        members[f"{n:09d}.json"] = json.dumps(row(f"{n:09d}", caption)).encode()
    members |= {"000000004.txt": b"no picture", "000000005.jpg": corpora.jpeg_bytes()}
    members |= {"000000006.jpg": b"<html>", "000000006.txt": b"an error page"}
    members |= {"000000007.jpg": cut, "000000007.txt": b"half a picture"}
    before = corpora.write_tar(source / "00000.tar", members).read_bytes()
    whole = corpora.write_tar(source / "00001.tar", members)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    dead = [row("a", "x", "failed_to_download"), row("b", "y", "failed_to_resize"), row("c", "z")]
    parquet.write_table(pyarrow.Table.from_pylist(dead), source / "00000.parquet")
    out = tmp_path / "laion"
    run(cc_sbu_laion, source, "--out", out, "--check", check)
    expected = {
        "000000004": "missing media",
        "000000005": "empty caption",
        "000000006": "unreadable media",
        "000000007": "unreadable media",
        "00001.tar": "truncated tar",
    }
    assert dropped(out) == expected
    report = manifest(out)
    assert report["reasons"]["dead link"] == 2
    assert report["counts"]["kept"] == 4
    index = json.loads((out / "index.json").read_text())
    assert index["kind"] == "ti-cap" and index["samples"] == 8 and len(index["shards"]) == 1
    shard = index["shards"][0]
    assert (out / shard["file"]).read_bytes() == before and shard["bytes"] == len(before)
    assert report["shards"] == 1


def test_cc_sbu_laion_from_a_table_and_a_folder(tmp_path):
    usable = corpora.odd_pictures(tmp_path / "images")
    rows = [{"image": name, "caption": f"picture {name}", "url": "http://x"} for name in usable]
    rows += [{"image": "../secret.jpg", "caption": "outside", "url": ""}, {"image": "", "caption": "no", "url": ""}]
    corpora.jpeg(tmp_path / "secret.jpg")
    table = corpora.write_csv(tmp_path / "filter.tsv", rows, "\t")
    run(cc_sbu_laion, table, "--out", tmp_path / "out", "--check", "decode", "--place", "copy")
    found = loads(tmp_path / "out", "image")
    assert set(found) == {name for name, good in usable.items() if good}
    assert not (tmp_path / "out" / "images").is_symlink()
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == sorted(found)
    assert dropped(tmp_path / "out") == {
        "cut.jpg": "unreadable media",
        "empty.jpg": "unreadable media",
        "text.jpg": "unreadable media",
        "../secret.jpg": "path outside the media folder",
        "": "malformed annotation",
    }
    wrapped = corpora.write_json(tmp_path / "filter_cap.json", {"annotations": [{"image_id": "grey", "caption": "g"}]})
    run(cc_sbu_laion, wrapped, "--media", tmp_path / "images", "--out", tmp_path / "align")
    assert entries(tmp_path / "align")[0]["image_id"] == "grey.jpg"


def test_cc_sbu_laion_lists_links_for_the_downloader(tmp_path, capsys):
    rows = [{"caption": c, "url": f"http://x/{n}"} for n, c in enumerate([*corpora.ODD_CAPTIONS, " "])]
    rows += [rows[0], {"caption": "no link"}]
    source = corpora.write_json(tmp_path / "ccs_synthetic_filtered_large.json", rows)
    run(cc_sbu_laion, source, "--out", tmp_path / "cc")
    assert "img2dataset --url_list" in capsys.readouterr().out
    from dataset_prep.prep.tables import rows as read

    links = [r for _, r in read(tmp_path / "cc" / "urls.tsv")]
    assert [r["url"] for r in links] == [f"http://x/{n}" for n in range(4)]
    assert links[0]["caption"] == 'a "quoted", dog; 50% off'
    assert manifest(tmp_path / "cc")["reasons"] == {"empty caption": 1, "duplicate id": 1, "malformed annotation": 1}


def test_cc_sbu_laion_says_what_a_source_lacks(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "neither .tar files nor numbered" in fails(capsys, cc_sbu_laion, tmp_path / "empty", "--out", tmp_path / "o")
    table = corpora.write_csv(tmp_path / "a.csv", [{"caption": "a", "picture": "1.jpg"}])
    said = fails(capsys, cc_sbu_laion, table, "--media", tmp_path, "--out", tmp_path / "o")
    assert "columns: caption, picture" in said and "--file-column" in said
    corpora.jpeg(tmp_path / "1.jpg")
    run(cc_sbu_laion, table, "--media", tmp_path, "--out", tmp_path / "o", "--file-column", "picture", "--overwrite")
    assert "no.json: does not exist" in fails(capsys, cc_sbu_laion, tmp_path / "no.json", "--out", tmp_path / "p")


# COCO


def karpathy():
    def image(number, split, *texts, folder="train2014"):
        name = f"COCO_{folder}_{number:012d}.jpg"
        sentences = [{"raw": text, "tokens": text.split(), "imgid": number} for text in texts]
        return {"filepath": folder, "filename": name, "split": split, "cocoid": number, "sentences": sentences}

    return {
        "dataset": "coco",
        "images": [
            image(1, "train", "A dog.", "A dog.", "the same 犬", ""),
            image(2, "restval", "Two cats", folder="val2014"),
            image(3, "test", "not for training"),
            image(4, "train", " ", "..."),
            image(5, "train", "its image is missing"),
            image(6, "train", "of the 2017 release"),
        ],
    }


def test_coco_caption_from_karpathy(tmp_path):
    root = tmp_path / "coco"
    corpora.jpeg(root / "train2014" / "COCO_train2014_000000000001.jpg")
    corpora.jpeg(root / "val2014" / "COCO_val2014_000000000002.jpg")
    corpora.jpeg(root / "train2014" / "COCO_train2014_000000000003.jpg")
    corpora.jpeg(root / "train2017" / "000000000006.jpg")
    source = corpora.write_json(tmp_path / "dataset_coco.json", karpathy())
    run(coco_caption, source, "--media", root, "--out", tmp_path / "out")
    found = loads(tmp_path / "out", "image")
    assert {k: e["caption"] for k, e in found.items()} == {
        "1": ["A dog.", "the same 犬"],
        "2": "Two cats",
        "6": "of the 2017 release",
    }
    assert found["6"]["image_id"] == "train2017/000000000006.jpg"
    assert dropped(tmp_path / "out") == {"4": "empty caption", "5": "missing media"}
    run(coco_caption, source, "--media", root, "--out", tmp_path / "test", "--splits", "test")
    assert [e["id"] for e in entries(tmp_path / "test")] == ["3"]


def test_coco_caption_from_pairs_and_from_its_own_format(tmp_path):
    root = tmp_path / "images"
    for number in (1, 2):
        corpora.jpeg(root / "train2014" / f"COCO_train2014_{number:012d}.jpg")
    name = "train2014/COCO_train2014_{:012d}.jpg"
    pairs = [{"image": name.format(n), "caption": c} for n, c in [(1, "a"), (2, "b"), (1, "c"), (1, "a")]]
    source = corpora.write_json(tmp_path / "coco_karpathy_train.json", [*pairs, {"caption": "d"}, "no object"])
    run(coco_caption, source, "--out", tmp_path / "pairs")
    assert [e["caption"] for e in entries(tmp_path / "pairs")] == [["a", "c"], "b"]
    assert manifest(tmp_path / "pairs")["reasons"] == {"malformed annotation": 2}
    official = {
        "images": [{"id": 1, "file_name": "COCO_train2014_000000000001.jpg"}],
        "annotations": [{"image_id": 1, "id": 9, "caption": "a"}, {"image_id": 2, "id": 8, "caption": "b\n"}],
    }
    source = corpora.write_json(tmp_path / "captions_train2014.json", official)
    run(coco_caption, source, "--out", tmp_path / "official")
    assert {e["id"]: e["caption"] for e in loads(tmp_path / "official", "image").values()} == {"1": "a", "2": "b"}


def test_coco_caption_needs_its_format_and_its_images(tmp_path, capsys):
    source = corpora.write_json(tmp_path / "a.json", {"x": 1})
    assert "not a COCO caption file" in fails(capsys, coco_caption, source, "--out", tmp_path / "out")
    source = corpora.write_json(tmp_path / "b.json", karpathy())
    said = fails(capsys, coco_caption, source, "--media", tmp_path, "--out", tmp_path / "none")
    assert "nothing was kept" in said
    assert "no media folder" in fails(capsys, coco_caption, source, "--media", tmp_path / "x", "--out", tmp_path / "o")


# WebVid


def webvid_source(tmp_path):
    root = tmp_path / "videos"
    corpora.video(root / "000001_000050" / "1001.mp4", sound=True)
    corpora.video(root / "1002.mp4")
    corpora.varying_video(root / "000051_000100" / "1003.mp4", [0, 0.1, 1.0, 1.05], [40, 90, 140, 190])
    whole = corpora.video(root / "1004.mp4").read_bytes()
    (root / "1004.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "1005.mp4").write_text("<html>")
    names = {1001: "000001_000050", 1003: "000051_000100"}
    rows = [
        {"videoid": n, "contentUrl": f"http://v/{n}", "duration": "PT1S", "page_dir": names.get(n, ""), "name": c}
        for n, c in [
            (1001, 'Aerial, "drone" shot'), (1002, "Café – 犬"), (1003, "Varying"), (1004, "Cut"), (1005, "Page"),
            (1006, "Missing"), (1007, ""), (1001, "Again"),
        ]
    ]  # fmt: skip
    return corpora.write_csv(tmp_path / "results_2M_train.csv", rows, bom=True)


def test_webvid_clips(tmp_path):
    source = webvid_source(tmp_path)
    run(webvid, source, "--out", tmp_path / "webvid")
    found = loads(tmp_path / "webvid", "video")
    assert {k: e["video_id"] for k, e in found.items()} == {
        "1001": "000001_000050/1001.mp4",
        "1002": "1002.mp4",
        "1003": "000051_000100/1003.mp4",
    }
    assert found["1001"]["caption"] == 'Aerial, "drone" shot'
    bad = {"1004": "unreadable media", "1005": "unreadable media", "1006": "missing media"}
    assert dropped(tmp_path / "webvid") == {**bad, "1007": "empty caption", "1001": "duplicate id"}


def test_webvid_frames(tmp_path):
    source = webvid_source(tmp_path)
    run(webvid, source, "--out", tmp_path / "webvid", "--frames", "3", "--size", "32")
    found = loads(tmp_path / "webvid", "video")
    folder = tmp_path / "webvid" / "videos"
    assert not folder.is_symlink()
    assert {e["video_id"] for e in found.values()} == {"000001_000050/1001", "1002", "000051_000100/1003"}
    assert sorted(p.name for p in (folder / "1002").iterdir()) == ["00000.jpg", "00001.jpg", "00002.jpg"]
    from PIL import Image

    assert min(Image.open(folder / "1002" / "00000.jpg").size) == 32
    assert dropped(tmp_path / "webvid")["1004"] == "unreadable media"


def test_webvid_from_what_video2dataset_wrote(tmp_path, capsys):
    source = tmp_path / "dataset"
    corpora.video(source / "00000" / "000000000.mp4")
    corpora.write_json(source / "00000" / "000000000.json", row("000000000", "a clip", videoid=7))
    corpora.write_json(source / "00000" / "000000001.json", row("000000001", "gone", "failed_to_download"))
    run(webvid, source, "--out", tmp_path / "files")
    assert [e["caption"] for e in loads(tmp_path / "files", "video").values()] == ["a clip"]
    assert dropped(tmp_path / "files") == {"000000001": "dead link"}
    clip = (source / "00000" / "000000000.mp4").read_bytes()
    members = {"000000000.mp4": clip, "000000000.txt": b"a clip", "000000001.mp4": clip[:900], "000000001.txt": b"cut"}
    corpora.write_tar(tmp_path / "tars" / "00000.tar", members)
    run(webvid, tmp_path / "tars", "--out", tmp_path / "indexed")
    assert dropped(tmp_path / "indexed") == {"000000001": "unreadable media"}
    said = fails(capsys, webvid, tmp_path / "tars", "--out", tmp_path / "no", "--frames", "2")
    assert "--frames cannot be taken from tars" in said


# What all of them have


def test_a_second_run_says_the_same_and_a_changed_one_is_refused(tmp_path, capsys):
    corpora.odd_sounds(tmp_path / "audio", list("abcde"))
    rows = [{"youtube_id": y, "start_time": "", "caption": y} for y in "abc"]
    source = corpora.write_csv(tmp_path / "train.csv", rows)
    run(audiocaps, source, "--out", tmp_path / "out")
    first = capsys.readouterr().out
    assert "3 kept, 0 left out" in first
    run(audiocaps, source, "--out", tmp_path / "out")
    assert capsys.readouterr().out == first
    assert "limit: null then, 2 now" in fails(capsys, audiocaps, source, "--out", tmp_path / "out", "--limit", "2")
    run(audiocaps, source, "--out", tmp_path / "out", "--limit", "2", "--overwrite")
    assert len(entries(tmp_path / "out")) == 2


def test_several_processes_give_the_same_files(tmp_path):
    source = webvid_source(tmp_path)
    run(webvid, source, "--out", tmp_path / "one")
    assert webvid.main([str(source), "--out", str(tmp_path / "two"), "--workers", "2", "--quiet"]) == 0
    for name in ("annotations.json", "dropped.jsonl", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
