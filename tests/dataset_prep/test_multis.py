"""MULTIS from its sources and from its own annotation files, to datasets that the runner reads and their mixture."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from chatbridge.common.read_mode import Training
from chatbridge.conversation import Templates
from chatbridge.datasets import AnnotationFile, TaskKind
from chatbridge.datasets.dialogues import DialogueMaker
from chatbridge.processors import (
    MediaLoader,
)
from dataset_prep import multis
from tests.dataset_prep import corpora
from tests.dataset_prep.corpora import QUICK, SMALL, dropped, entries, manifest

ROOT = Path(__file__).parents[2]


def run(source, out, *arguments):
    assert multis.main([str(source), "--out", str(out), *map(str, arguments), *QUICK]) == 0


def mixture(out) -> dict:
    return yaml.safe_load((out / "mixture.yaml").read_text(encoding="utf-8"))


def readable(out, name) -> list[str]:
    """Reads a dataset as the runner would by the mixture's keys; returns what is said of every entry."""
    keys = mixture(out)["datasets"][name]
    place = {"${paths.data}": str(out)}
    annotations = keys["annotations"].replace(*next(iter(place.items())))
    kind = TaskKind.parse(keys["kind"])
    roots = {m: folder.replace("${paths.data}", str(out)) for m, folder in keys["media"].items()}
    loader = MediaLoader({m: SMALL[m] for m in roots}, roots)
    maker = DialogueMaker(kind, Templates.load())
    said = []
    for record in AnnotationFile(annotations, [kind]):
        for modality in kind.modalities:
            for file in record.files_of(modality):
                assert loader.load(modality, file, Training(random.Random(0))).shape == SMALL[modality].shape
        said += [turn.text for turn in maker.sample(record).dialogue.turns if turn.text]
    return said


def coco(source):
    for number in (9, 25):
        corpora.jpeg(source / "coco" / "train2014" / f"COCO_train2014_{number:012d}.jpg")


def talk(*texts):
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def test_vqa_v2_from_its_two_files(tmp_path):
    coco(tmp_path)
    prefix = tmp_path / "vqa" / "v2_{}_train2014_{}.json"
    questions = [
        {"image_id": 9, "question": 'What is "this"?', "question_id": 9000},
        {"image_id": 9, "question": "How many?", "question_id": 9001},
        {"image_id": 77, "question": "Of what?", "question_id": 9002},
        {"image_id": 25, "question": " ", "question_id": 9003},
    ]
    answers = ["a dog"] * 6 + ["dog"] * 3 + ["cat"]
    notes = [{"question_id": 9000 + n, "image_id": q["image_id"]} for n, q in enumerate(questions)]
    for note in notes:
        note |= {"multiple_choice_answer": "a dog", "answers": [{"answer": a, "answer_id": 1} for a in answers]}
    del notes[1]["multiple_choice_answer"]
    notes += [{"question_id": 5, "image_id": 9, "answers": []}]
    corpora.write_json(Path(str(prefix).format("OpenEnded_mscoco", "questions")), {"questions": questions})
    corpora.write_json(Path(str(prefix).format("mscoco", "annotations")), {"annotations": notes})
    run(tmp_path, tmp_path / "out")
    found = entries(tmp_path / "out" / "vqav2")
    assert [(e["id"], e["question"], e["answer"]) for e in found] == [
        ("9000", 'What is "this"?', "a dog"),
        ("9001", "How many?", "a dog"),
    ]
    assert found[0]["references"] == answers
    assert found[0]["image_id"] == "train2014/COCO_train2014_000000000009.jpg"
    assert dropped(tmp_path / "out" / "vqav2") == {
        "9002": "missing media",
        "9003": "malformed annotation",
        "5": "malformed annotation",
    }
    assert readable(tmp_path / "out", "vqav2")[1] == "a dog"


def test_visual_genome_from_its_file_and_from_lavis_list(tmp_path):
    corpora.jpeg(tmp_path / "VG" / "images" / "VG_100K" / "1.jpg")
    corpora.jpeg(tmp_path / "VG" / "images" / "VG_100K_2" / "2.jpg")
    pair = {"question": "What colour?", "answer": "Red.", "a_objects": [], "q_objects": []}
    tree = [
        {"id": 1, "qas": [{**pair, "image_id": 1, "qa_id": 11}, {**pair, "image_id": 1, "qa_id": 11}]},
        {"id": 2, "qas": [{**pair, "image_id": 2, "qa_id": 12, "answer": ""}, {**pair, "image_id": 2, "qa_id": 13}]},
        {"id": 3, "qas": []},
    ]
    corpora.write_json(tmp_path / "question_answers.json", tree)
    run(tmp_path, tmp_path / "out")
    found = entries(tmp_path / "out" / "vg_qa")
    assert [(e["id"], e["answer"], e["image_id"]) for e in found] == [
        ("11", "Red", "VG_100K/1.jpg"),
        ("13", "Red", "VG_100K_2/2.jpg"),
    ]
    assert manifest(tmp_path / "out" / "vg_qa")["reasons"] == {"duplicate id": 1, "malformed annotation": 1}
    listed = [{"image": "visual-genome/image/2.jpg", "question": "Q?", "answer": ["x"], "dataset": "vg"}]
    file = corpora.write_json(tmp_path / "lavis" / "vg_qa.json", listed)
    run(tmp_path, tmp_path / "lavis_out", "--only", "vg_qa", "--annotations", f"vg_qa={file}")
    assert entries(tmp_path / "lavis_out" / "vg_qa")[0]["image_id"] == "VG_100K_2/2.jpg"


def msrvtt(source):
    for number in (0, 1, 7):
        corpora.video(source / "MSRVTT" / "videos" / f"video{number}.mp4", sound=number == 1)


def test_msrvtt(tmp_path):
    msrvtt(tmp_path)
    videos = [{"video_id": f"video{n}", "split": "train" if n < 7 else "validate", "id": n} for n in (0, 1, 2, 7)]
    texts = [
        (0, "a man, talking"),
        (0, "a man, talking"),
        (0, "un café 犬"),
        (1, ""),
        (1, "b"),
        (2, "gone"),
        (7, "val"),
    ]
    sentences = [{"video_id": f"video{n}", "sen_id": i, "caption": c} for i, (n, c) in enumerate(texts)]
    corpora.write_json(tmp_path / "train_val_videodatainfo.json", {"videos": videos, "sentences": sentences})
    questions = [
        {"answer": "couch", "category_id": 1, "id": 0, "question": "what is on?", "video_id": 0},
        {"answer": "", "id": 1, "question": "why?", "video_id": 1},
        {"answer": "x", "id": 2, "question": "who?", "video_id": 99},
    ]
    corpora.write_json(tmp_path / "MSRVTT-QA" / "train_qa.json", questions)
    run(tmp_path, tmp_path / "out")
    captions = entries(tmp_path / "out" / "msrvtt_caption")
    assert {e["video_id"]: e["caption"] for e in captions} == {
        "video0.mp4": ["a man, talking", "un café 犬"],
        "video1.mp4": "b",
    }
    assert manifest(tmp_path / "out" / "msrvtt_caption")["reasons"] == {"empty caption": 1, "missing media": 1}
    assert [(e["video_id"], e["answer"]) for e in entries(tmp_path / "out" / "msrvtt_qa")] == [("video0.mp4", "couch")]
    assert dropped(tmp_path / "out" / "msrvtt_qa") == {"1": "malformed annotation", "99#2": "missing media"}
    assert readable(tmp_path / "out", "msrvtt_caption") and readable(tmp_path / "out", "msrvtt_qa")


def test_llava_files_keep_their_conversations(tmp_path):
    for number in (1, 2, 3):
        corpora.jpeg(tmp_path / "coco" / "train2017" / f"{number:012d}.jpg")
    turns = talk("<image>\nWhat is it?", 'A "dog", I think – 犬.', "Why?", "It barks.")
    listed = [{"id": f"{n:012d}", "image": f"{n:012d}.jpg", "conversations": turns} for n in (1, 2, 1)]
    listed += [
        {"id": "3", "image": "000000000003.jpg", "conversations": turns[1:]},
        {"id": "4", "image": "000000000003.jpg", "conversations": []},
        {"id": "5", "image": "000000000003.jpg", "conversations": talk("<image>\nWhat?")},
        {"id": "6", "conversations": turns[:2]} | {"image": "999999.jpg"},
        {"id": "7", "image": "000000000003.jpg", "conversations": talk("Hm?", " ")},
        {"image": {"no": "name"}, "conversations": turns},
        "no object",
    ]
    for name in ("conversation_58k", "detail_23k", "complex_reasoning_77k"):
        corpora.write_json(tmp_path / "llava" / f"{name}.json", listed)
    run(tmp_path, tmp_path / "out")
    for name, kind in (("conversation", "ti-conv"), ("detail", "ti-det"), ("reasoning", "ti-rea")):
        folder = tmp_path / "out" / f"llava_{name}"
        assert [e["image_id"] for e in entries(folder)] == [f"train2017/{n:012d}.jpg" for n in (1, 2, 1)]
        assert entries(folder)[0]["conversations"] == turns
        assert manifest(folder)["reasons"] == {"malformed annotation": 6, "missing media": 1}
        assert mixture(tmp_path / "out")["datasets"][f"llava_{name}"]["kind"] == kind
        said = readable(tmp_path / "out", f"llava_{name}")
        assert said[0] == "What is it?" and len(said) == (12 if kind == "ti-conv" else 6)


def own_files(source):
    """MULTIS' own annotation files, in the formats of the original's data_task.py."""
    coco(source)
    msrvtt(source)
    corpora.odd_sounds(source / "audiocaps" / "audio", ["s0", "s1", "c", "d", "e"])
    for name in ("YabcD_1", "Y-x"):
        corpora.video(source / "audioset" / "videos" / f"{name}.mp4", sound=True)
    corpora.video(source / "audioset" / "videos" / "mute.mp4")
    image = "COCO_train2014_000000000009.jpg"
    turns = talk("<video>\nWhat happens?", "It rains.", "Loudly?", "Yes.")
    chat = [{"video_id": v, "conversations": turns} for v in ("video0", "video1.mp4", "video404")]
    both = [{"video_id": v, "conversations": turns} for v in ("YabcD_1", "Y-x", "mute")]
    files = {
        "img_vqa_vqav2": [
            {"image_id": image, "question": ["Q one?", "Q two?"], "answer": ["a1", "a2"]},
            {"image_id": image, "question": "One?", "answer": ["yes", "no", "no"]},
            {"image_id": image, "question": ["Q one?", "Q two?"], "answer": ["a1"]},
        ],
        "img_vqa_vg": [],
        "img_cap_coco": [{"video_id": "000000000025", "desc": ["a", "b"]}, {"image_id": image, "caption": ""}],
        "vid_qa_msrvtt": [{"video_id": "video7", "question": "Who?", "answer": "a man"}],
        "vid_cap_msrvtt": [{"video_id": "video1", "desc": "a man", "caption": "other"}],
        "aud_cap_audiocaps": [{"video_id": "s0", "caption": "tone"}, {"video_id": "s1.wav", "desc": ["x", "y"]}],
        "llava_complex_reasoning_77k": [{"image_id": image, "conversations": turns[:2]}],
        "llava_detail_23k": [{"video_id": image, "conversations": turns[:2]}],
        "llava_conversation_58k": [{"image_id": image, "conversations": turns}],
        "video_conversation_10k": chat,
        "video_detail_10k": chat,
        "video_complex_reasoning_10k": chat,
        "audiovideo_conversation_10k": both,
        "audiovideo_detail_10k": both,
    }
    for name, tree in files.items():
        if tree:
            corpora.write_json(source / "MULTIS_annotation" / f"{name}.json", tree)


def test_its_own_files_in_every_format(tmp_path, capsys):
    own_files(tmp_path)
    run(tmp_path, tmp_path / "out")
    out = tmp_path / "out"
    assert "vg_qa: left out: no img_vqa_vg.json or question_answers.json or vg_qa.json" in capsys.readouterr().out
    found = entries(out / "vqav2")
    assert found[0]["question"] == ["Q one?", "Q two?"] and found[0]["answer"] == ["a1", "a2"]
    assert found[1]["answer"] == "no" and found[1]["references"] == ["yes", "no", "no"]
    assert manifest(out / "vqav2")["reasons"] == {"malformed annotation": 1}
    assert entries(out / "coco_caption")[0]["caption"] == ["a", "b"]
    assert entries(out / "msrvtt_caption")[0] == {"id": "video1#0", "video_id": "video1.mp4", "caption": "a man"}
    assert [e["audio_id"] for e in entries(out / "audiocaps")] == ["s0.wav", "s1.wav"]
    assert [e["video_id"] for e in entries(out / "msrvtt_reasoning")] == ["video0.mp4", "video1.mp4"]
    for name in ("valor_conversation", "valor_detail"):
        assert [(e["video_id"], e["audio_id"]) for e in entries(out / name)] == [
            ("YabcD_1.mp4", "YabcD_1.mp4"),
            ("Y-x.mp4", "Y-x.mp4"),
        ]
        assert dropped(out / name) == {"mute#2": "unreadable media"}  # it has no sound track
    for name in mixture(out)["datasets"]:
        assert readable(out, name)


def test_the_mixture_is_the_published_one(tmp_path):
    own_files(tmp_path)
    corpora.write_json(
        tmp_path / "question_answers.json",
        [{"id": 1, "qas": [{"question": "Q?", "answer": "a", "image_id": 1, "qa_id": 1}]}],
    )
    corpora.jpeg(tmp_path / "vg" / "VG_100K" / "1.jpg")
    run(tmp_path, tmp_path / "out")
    made = mixture(tmp_path / "out")["datasets"]
    config = ROOT / "instructiontuning_configs" / "instructtuning_ivaavchat_ckpt13.yaml"
    published = yaml.safe_load(config.read_text(encoding="utf-8"))["datasets"]
    assert set(made) == set(published)
    for name, keys in published.items():
        for key in ("kind", "weight", "batch_size", "annotations", "media"):
            assert made[name][key] == keys[key], (name, key)
    total = sum(keys["weight"] for keys in made.values())
    task = sum(keys["weight"] for keys in made.values() if keys["batch_size"] != 16)
    assert round(task / total, 2) == 0.27  # of the original's training configuration
    report = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(report["datasets"]) == set(published) and report["absent"] == {}


def test_other_sets_join_with_a_weight(tmp_path):
    corpora.jpeg(tmp_path / "textcaps" / "train_images" / "0a1b.jpg")
    texts = ['A sign says "STOP"', "a sign", ""]
    data = [{"image_id": "0a1b", "caption_str": c, "caption_id": n} for n, c in enumerate(texts)]
    corpora.write_json(tmp_path / "textcaps" / "TextCaps_0.1_train.json", {"dataset_name": "textcaps", "data": data})
    corpora.jpeg(tmp_path / "ocrvqa" / "images" / "0679.jpg")
    book = {"imageURL": "http://x/0679.jpg", "questions": ["Who?", "What?"], "answers": ["B. Author", "A book"]}
    books = {"0679": {**book, "split": 1}, "1": {**book, "split": 2}, "2": {**book, "answers": ["one"], "split": 1}}
    corpora.write_json(tmp_path / "ocrvqa" / "dataset.json", books)
    assert multis.main([str(tmp_path), "--out", str(tmp_path / "no"), *QUICK]) == 1
    run(tmp_path, tmp_path / "out", "--weight", "textcaps=0.5", "--weight", "ocrvqa=2")
    made = mixture(tmp_path / "out")["datasets"]
    assert {name: keys["weight"] for name, keys in made.items()} == {"textcaps": 0.5, "ocrvqa": 2}
    assert entries(tmp_path / "out" / "textcaps")[0]["caption"] == ['A sign says "STOP"', "a sign"]
    assert [e["answer"] for e in entries(tmp_path / "out" / "ocrvqa")] == ["B. Author", "A book"]
    assert dropped(tmp_path / "out" / "ocrvqa") == {"2": "malformed annotation"}
    assert readable(tmp_path / "out", "ocrvqa")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "vqa2"], "there is no 'vqa2'; did you mean 'vqav2'?"),
        (["--media", "vqav2.audio=x"], "there is no 'vqav2.audio'"),
        (["--weight", "vqav2"], "expected NAME=VALUE"),
        (["--weight", "vqav2=much"], "expected a number"),
        (["--weight", "vqav2=nan"], "expected a number"),
        ([], "not one dataset of MULTIS is there"),
    ],
)
def test_mistakes_are_said(tmp_path, capsys, arguments, said):
    assert multis.main([str(tmp_path), "--out", str(tmp_path / "out"), *arguments, *QUICK]) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_set_without_its_media_is_left_out(tmp_path, capsys):
    msrvtt(tmp_path)
    corpora.write_json(tmp_path / "vid_cap_msrvtt.json", [{"video_id": "video1", "desc": "a man"}])
    corpora.write_json(tmp_path / "img_cap_coco.json", [{"video_id": "000000000025", "desc": "a"}])
    run(tmp_path, tmp_path / "out")
    assert "coco_caption: left out: no folder of its image" in capsys.readouterr().out
    assert list(mixture(tmp_path / "out")["datasets"]) == ["msrvtt_caption"]
    assert "# Not there: coco_caption" in (tmp_path / "out" / "mixture.yaml").read_text()
    coco(tmp_path)
    run(tmp_path, tmp_path / "out", "--media", f"coco_caption.image={tmp_path / 'coco' / 'train2014'}")
    assert readable(tmp_path / "out", "coco_caption")
