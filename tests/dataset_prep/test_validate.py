"""`validate` finds everything that is wrong with a run's data or with one annotation file, and says where."""

from __future__ import annotations

import json

import pytest
import soundfile

from chatbridge.datasets import AnnotationFile, TaskKind
from dataset_prep import shards, validate
from tests import tiny
from tests.dataset_prep import corpora
from tests.dataset_prep.corpora import QUICK, fails
from tests.media_files import tone


def report(capsys, *arguments, expected=1):
    capsys.readouterr()
    assert validate.main([*map(str, arguments), "--json", *QUICK]) == expected
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return json.loads(said.out)


def of_file(tmp_path, kind, entries, name="a.json"):
    corpora.jpeg(tmp_path / "media" / "0.jpg")
    corpora.jpeg(tmp_path / "secret.jpg")
    file = corpora.write_json(tmp_path / name, entries)
    return ["--annotations", file, "--kind", kind, "--media", tmp_path / "media"]


GOOD = {"image_id": "0.jpg", "caption": "a", "question": "What?", "answer": "that", "text": "STOP"}
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]


@pytest.mark.parametrize(
    ("kind", "entry", "reason", "said"),
    [
        ("ti-cap", "text", "malformed annotation", "must be a JSON object, not str"),
        ("ti-cap", {"caption": "a"}, "malformed annotation", "names no image"),
        ("ti-cap", {"image_id": "0.jpg"}, "malformed annotation", "lacks caption (or desc)"),
        ("ti-cap", {"image_id": "0.jpg", "captions": "a"}, "malformed annotation", "did you mean 'caption'?"),
        ("ti-cap", {"image_id": {"a": 1}, "caption": "a"}, "malformed annotation", "a file name, not dict"),
        ("ti-cap", {"image_id": True, "caption": "a"}, "malformed annotation", "a file name, not bool"),
        ("ti-cap", {"image_id": [], "caption": "a"}, "malformed annotation", "'image_id' names no file"),
        ("ti-cap", {"image_id": "", "caption": "a"}, "malformed annotation", "'image_id' names no file"),
        ("ti-cap", {"image_id": "0.jpg", "caption": 1.5}, None, ""),
        ("ti-cap", {"image_id": "0.jpg", "caption": {"a": 1}}, "malformed annotation", "'caption' must be text"),
        ("ti-cap", {"image_id": "0.jpg", "caption": " \n"}, "malformed annotation", "lacks caption (or desc) with any"),
        ("ti-cap", {"image_id": "0.jpg", "caption": ["fine", "..."]}, "malformed annotation", "no words once"),
        ("ti-shortqa", {"image_id": "0.jpg", "question": "What?"}, "malformed annotation", "lacks answer"),
        ("ti-shortqa", {"image_id": "0.jpg", "answer": "x"}, "malformed annotation", "lacks question"),
        ("ti-shortqa", {**GOOD, "question": " "}, "malformed annotation", "lacks question with any words"),
        ("ti-shortqa", {**GOOD, "answer": ""}, "malformed annotation", "lacks answer with any words"),
        ("ti-shortqa", {**GOOD, "question": ["a", "b"], "answer": ["c"]}, "malformed annotation", "lists 2"),
        ("ti-shortqa", {**GOOD, "question": ["a", "b"], "answer": "c"}, "malformed annotation", "has one"),
        ("ti-shortqa", {**GOOD, "question": 5}, None, ""),
        ("ti-ocr", {"image_id": "0.jpg", "text": []}, "malformed annotation", "lacks text with any words"),
        ("ti-conv", {"image_id": "0.jpg", "conversations": "hi"}, "malformed annotation", "must be a list"),
        ("ti-conv", {"image_id": "0.jpg", "conversations": TALK[:1]}, "malformed annotation", "an answer in"),
        ("ti-conv", {"image_id": "0.jpg", "conversations": TALK[1:]}, "malformed annotation", "human first"),
        ("ti-det", {"image_id": "0.jpg", "conversations": [{"from": "x"}]}, "malformed annotation", "needs 'from'"),
        ("ti-conv", {"image_id": "0.jpg", "conversations": [TALK[0], {"from": "gpt", "value": ""}]},
         "malformed annotation", "conversations[1].value is empty"),
        ("ti-cap", {"image_id": "1.jpg", "caption": "a"}, "missing media", "no such image"),
        ("ti-cap", {"image_id": "../secret.jpg", "caption": "a"}, "path outside the media folder", "no '..'"),
        ("ti-cap", {"image_id": "/etc/passwd", "caption": "a"}, "path outside the media folder", "absolute"),
        ("ti-cap", {"image_id": "C:\\secret.jpg", "caption": "a"}, "path outside the media folder", "absolute"),
        ("ti-cap", {"image_id": "0.jpg\0", "caption": "a"}, "path outside the media folder", "0.jpg"),
        ("ti-cap", {"image_id": ["0.jpg", "1.jpg"], "caption": "a"}, "missing media", "1.jpg"),
        ("ti-cap%ti-shortqa", {"image_id": "0.jpg", "caption": "a"}, "malformed annotation", "lacks question"),
    ],
)  # fmt: skip
def test_every_mistake_has_file_index_and_reason(tmp_path, capsys, kind, entry, reason, said):
    whole = {**GOOD, "conversations": TALK}
    command = of_file(tmp_path, kind, [whole, entry, whole])
    found = report(capsys, *command, expected=0 if reason is None else 1)
    if reason is None:
        assert found["ok"] and found["good"] == found["entries"] == 3
        return
    assert not found["ok"] and found["entries"] == 3 and found["good"] == 2
    assert {(p["file"], p["index"], p["reason"]) for p in found["problems"]} == {(str(command[1]), 1, reason)}
    assert any(said in p["detail"] for p in found["problems"])
    if reason != "missing media" and not any(part in said for part in ("no words once", "value is empty")):
        # What is known before any medium is read, training refuses, too (empty texts it may never draw).
        with pytest.raises(ValueError, match="entry 1"):
            AnnotationFile(command[1], TaskKind.parse_all(kind))


def test_all_mistakes_are_listed(tmp_path, capsys):
    usable = corpora.odd_pictures(tmp_path / "media")
    listed = [{"image_id": name, "caption": "a"} for name in usable] + [{"image_id": "0.jpg"}] * 30
    found = report(capsys, *of_file(tmp_path, "ti-cap", listed))
    assert found["reasons"] == {"malformed annotation": 30, "unreadable media": 3}
    assert found["good"] == sum(usable.values())
    assert [p["index"] for p in found["problems"]] == [5, 6, 7, *range(8, 38)]
    command = list(map(str, of_file(tmp_path, "ti-cap", listed)))
    assert validate.main([*command, *QUICK]) == 1
    said = capsys.readouterr().out
    assert "38 entries read, 5 without a fault" in said and "... and 13 more" in said
    assert f"{command[1]}: entry 8 (0.jpg): lacks caption (or desc)" in said
    validate.main([*command, *QUICK, "--all"])
    assert capsys.readouterr().out.count("lacks caption") == 30


def test_sounds_and_videos_are_read_by_their_processors(tmp_path, capsys):
    media = tmp_path / "media"
    corpora.odd_sounds(media)
    corpora.video(media / "clip.mp4", sound=True)
    corpora.video(media / "mute.mp4")
    (media / "none.wav").write_bytes(b"")
    soundfile.write(media / "empty.wav", tone(0.1)[:0], 16000)
    names = ["mono", "stereo", "slow", "float", "flac", "clip", "mute", "none", "empty"]
    file = corpora.write_json(tmp_path / "a.json", [{"audio_id": n, "caption": "a"} for n in names])
    found = report(capsys, "--annotations", file, "--kind", "ta-cap", "--media", media)
    assert [(p["id"], p["reason"]) for p in found["problems"]] == [
        ("mute", "unreadable media"),
        ("none", "unreadable media"),
        ("empty", "unreadable media"),
    ]
    file = corpora.write_json(tmp_path / "b.json", [{"video_id": "clip", "conversations": TALK}])
    command = ["--annotations", file, "--kind", "tva-conv", "--media"]
    assert report(capsys, *command, f"video={media}", "--media", f"audio={media}", expected=0)["good"] == 1
    assert report(capsys, *command, media, expected=0)["good"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ("[]", "holds no annotations"), ('[{"image_id": "0.jpg", "caption": "a"}', "not closed")],
)
def test_a_file_that_is_no_annotation_file(tmp_path, capsys, text, said):
    command = of_file(tmp_path, "ti-cap", [])
    command[1].write_text(text)
    found = report(capsys, *command)
    assert found["reasons"] == {"unreadable annotation file": 1} and said in found["problems"][0]["detail"]
    assert found["problems"][0]["file"] == str(command[1])


def test_arguments_are_checked(tmp_path, capsys):
    command = of_file(tmp_path, "ti-cap", [GOOD])
    assert "there is no task kind 'capt'; did you mean 'cap'?" in fails(
        capsys, validate, *command[:2], "--kind", "ti-capt"
    )
    assert "--annotations needs --kind" in fails(capsys, validate, *command[:2])
    assert "give either --cfg-path" in fails(capsys, validate)
    assert "no folder for 'image'" in fails(capsys, validate, *command[:4])
    assert "does not exist" in fails(capsys, validate, *command[:4], "--media", tmp_path / "nowhere")


def test_a_report_is_kept_and_an_interrupted_validation_goes_on(tmp_path, capsys, monkeypatch):
    listed = [{"image_id": "0.jpg", "caption": "a"}] * 40 + [{"image_id": "0.jpg"}] * 40
    command = of_file(tmp_path, "ti-cap", listed)
    from dataset_prep.prep.validation import ValidationTarget

    calls = []
    original = ValidationTarget.read

    def read(self, item):
        if len(calls) == 50:
            raise KeyboardInterrupt
        calls.append(item.id)
        return original(self, item)

    monkeypatch.setattr(ValidationTarget, "read", read)
    arguments = [*map(str, command), "--out", str(tmp_path / "report"), *QUICK]
    assert validate.main(arguments) == 130
    assert "goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(ValidationTarget, "read", lambda self, item: (calls.append(item.id), original(self, item))[1])
    assert validate.main(arguments) == 1
    assert len(calls) == 50 + 80 - 32  # the first piece was done
    kept = json.loads((tmp_path / "report" / "report.json").read_text())
    assert kept["good"] == 40 and len(kept["problems"]) == 40


# A run's YAML


def test_a_run_is_validated_by_its_yaml(tmp_path, capsys):
    tree = tiny.make_config(tmp_path, "instruction")
    config = tiny.write_yaml(tmp_path, tree)
    found = report(capsys, "--cfg-path", config, expected=0)
    assert found["ok"] and found["good"] == found["entries"] == 12
    (tmp_path / "media" / "3.jpg").write_text("no picture")
    (tmp_path / "media" / "5.wav").unlink()
    file = tmp_path / "media" / "chats.json"
    listed = json.loads(file.read_text())
    listed[7]["conversations"] = listed[7]["conversations"][:1]
    listed[8]["conversations"][0]["value"] = "word " * 400
    file.write_text(json.dumps(listed))
    found = report(capsys, "--cfg-path", config, "--options", "task.max_txt_len=40")
    problems = {(p["dataset"], p["index"], p["reason"]) for p in found["problems"]}
    assert {p for p in problems if p[1] != 8} == {
        ("datasets.chats", 3, "unreadable media"),
        ("datasets.chats", 5, "missing media"),
        ("datasets.chats", 7, "malformed annotation"),
    }


def test_a_run_whose_samples_cannot_fit(tmp_path, capsys):
    config = tiny.write_yaml(tmp_path, tiny.make_config(tmp_path, "instruction"))
    found = report(capsys, "--cfg-path", config, "--options", "task.max_txt_len=9")
    assert found["reasons"] == {"sample cannot be written": 12}


def test_a_run_with_a_wrong_dataset(tmp_path, capsys):
    tree = tiny.make_config(tmp_path)
    tree["datasets"]["sounds"]["kind"] = "tv-cap"
    found = report(capsys, "--cfg-path", tiny.write_yaml(tmp_path, tree))
    assert found["reasons"] == {"dataset cannot be read": 1} and found["good"] == 12
    assert found["problems"][0]["dataset"] == "datasets.sounds"
    assert "kind 'tv-cap' shows 'video', which needs a folder under its media" in found["problems"][0]["detail"]
    tree["datasets"]["sounds"]["kidn"] = "ta-cap"
    assert "did you mean 'kind'?" in fails(capsys, validate, "--cfg-path", tiny.write_yaml(tmp_path, tree))


def test_tar_shards_of_a_run_are_read_too(tmp_path, capsys):
    tree = tiny.make_config(tmp_path)
    images = tree["datasets"]["images"]
    command = ["--annotations", images["annotations"], "--kind", "ti-cap", "--media", images["media"]["image"]]
    (tmp_path / "media" / "4.jpg").write_bytes((tmp_path / "media" / "4.jpg").read_bytes()[:-60])
    assert shards.main([*command, "--out", str(tmp_path / "tars"), "--check", "exists", "--samples", "5", *QUICK]) == 0
    sharded = {"builder": "webdataset", "folder": str(tmp_path / "tars"), "kind": "ti-cap", "batch_size": 4}
    tree["datasets"] = {"images": sharded, "sounds": tree["datasets"]["sounds"]}
    found = report(capsys, "--cfg-path", tiny.write_yaml(tmp_path, tree))
    assert found["entries"] == 24 and found["good"] == 23
    (problem,) = found["problems"]
    assert (problem["dataset"], problem["index"], problem["reason"]) == ("datasets.images", 4, "unreadable media")
    assert "000000.tar/4" in problem["detail"]
    tar = tmp_path / "tars" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    found = report(capsys, "--cfg-path", tiny.write_yaml(tmp_path, tree))
    assert found["reasons"]["dataset cannot be read"] == 1 and found["reasons"]["unreadable media"] >= 1
    assert any("000001.tar: is cut off" in problem["detail"] for problem in found["problems"])
