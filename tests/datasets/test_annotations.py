"""Annotation files and task kinds: what is read, what is refused and in which words, and what becomes of it."""

from __future__ import annotations

import json
import pickle
import random
import sys

import pytest

from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.conversation import MediaSource, PromptFormat, Templates
from chatbridge.datasets.annotations import AnnotationFile
from chatbridge.datasets.dialogues import DialogueMaker, caption_of, clean_tags, sources_of
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record

TALK = [
    {"from": "human", "value": "<thermal>\nHow warm?"},
    {"from": "gpt", "value": "Very."},
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "A fire."},
]


def write(folder, entries, name="a.json"):
    file = folder / name
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
    return file


def make(kind, entry, known=("image", "video", "audio"), mode=EVALUATION):
    kind = TaskKind.parse(kind, known)
    record = Record.parse(entry)
    record.check(kind)
    return DialogueMaker(kind, Templates.load()).sample(record, mode)


def text_of(sample):
    return PromptFormat().text(sample.dialogue, "<{}>")


# Task kinds


@pytest.mark.parametrize(
    ("text", "modalities", "kind"),
    [
        ("ti-cap", ("image",), "cap"),
        ("tva-conv", ("video", "audio"), "conv"),
        ("ta-shortqa", ("audio",), "shortqa"),
        ("tia-det", ("image", "audio"), "det"),
        ("t-conv", (), "conv"),
        ("thermal-cap", ("thermal",), "cap"),
        ("near-infrared-cap", ("near-infrared",), "cap"),
        ("video+thermal-yesnoqa", ("video", "thermal"), "yesnoqa"),
    ],
)
def test_kinds(text, modalities, kind):
    parsed = TaskKind.parse(text, ["image", "video", "audio", "thermal", "near-infrared"])
    assert (parsed.modalities, parsed.kind) == (modalities, kind)
    assert parsed.name == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ti", "form"),
        ("ti-detail", "'detail'.*'det'"),
        ("ti-captoin", "'captoin'.*'cap'"),
        ("thermol-cap", "'thermol'.*'thermal'"),
        ("xx-cap", "'xx'"),
        ("t-cap", "nothing to look at"),
        ("thermal+thermal-cap", "once"),
    ],
)
def test_wrong_kinds_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        TaskKind.parse(text, ["image", "thermal"])


def test_several_kinds():
    assert [kind.name for kind in TaskKind.parse_all("ti-cap%ti-shortqa")] == ["ti-cap", "ti-shortqa"]


# Records to dialogues


def test_a_fourth_modality():
    sample = make("thermal-conv", {"thermal_id": "t.png", "conversations": TALK}, ["thermal"])
    assert text_of(sample) == (
        "###Human: Given following thermal: <thermal>.###Human: How warm?###Assistant:Very."
        "###Human: Why?###Assistant:A fire.###"
    )
    caption = make("thermal-cap", {"thermal_id": "t.png", "caption": "a fire"}, ["thermal"])
    assert "thermal" in caption.dialogue.turns[1].text


def test_joint_media_of_different_files():
    record = Record.parse({"image_id": "i.jpg", "audio_id": "s.wav", "question": "q", "answer": "a"})
    assert (record.files_of("image"), record.files_of("audio"), record.id) == (("i.jpg",), ("s.wav",), "i.jpg")
    video = Record.parse({"video_id": "v.mp4", "audio_id": ["s1.wav", "s2.wav"]})
    assert (video.files_of("video"), video.files_of("audio")) == (("v.mp4",), ("s1.wav", "s2.wav"))
    assert sources_of(video, ["video", "audio"]) == (MediaSource("video"), MediaSource("audio", 2))
    assert Record.parse({"video_id": "v"}).files_of("audio") == ("v",)
    with pytest.raises(ValueError, match="names no image: .*image_id"):
        Record.parse({"audio_id": "s.wav"}).files_of("image")


def test_the_other_modality_as_text():
    entry = {"image_id": "i.jpg", "audio_text": "A low horn.", "question": "What do you hear?", "answer": "a horn"}
    sample = make("tia-normalqa", entry)
    assert "Given following image: <image> and audio: A low horn." in text_of(sample)
    assert [source.text for source in sample.dialogue.sources] == [None, "A low horn."]


def test_text_alone():
    sample = make("t-normalqa", {"id": 7, "question": "What is yellow?", "answer": "a bell"})
    assert (sample.id, text_of(sample)) == ("7", "###Human: What is yellow?###Assistant:a bell\n###")


def test_lists_of_answers():
    entry = {"image_id": "i", "question": "q?", "answer": ["red", "blue", "blue"], "group": "color"}
    sample = make("ti-shortqa", entry)
    assert (sample.dialogue.answer, sample.references, sample.group) == ("blue", ("red", "blue", "blue"), "color")
    drawn = [make("ti-shortqa", entry, mode=Training(random.Random(seed))).dialogue.answer for seed in range(60)]
    assert set(drawn) == {"red", "blue"}
    assert drawn.count("blue") > drawn.count("red")


def test_every_question_of_a_record_once():
    entry = {"image_id": "i", "question": ["q1", "q2"], "answer": ["a1", ["a2", "a3"]]}
    maker, record = DialogueMaker(TaskKind.parse("ti-normalqa"), Templates.load()), Record.parse(entry)
    samples = [maker.sample(record, item=item) for item in range(2)]
    assert [(s.id, s.references) for s in samples] == [("i/0", ("a1",)), ("i/1", ("a2", "a3"))]


def test_numbers_are_answers_and_ids():
    sample = make("ti-shortqa", {"image_id": 42, "question": "How many?", "answer": 3})
    assert (sample.id, sample.dialogue.answer) == ("42", "3")


def test_missing_answers_leave_a_question_open():
    record = Record.parse({"image_id": "i", "question": "q?"})
    kind = TaskKind.parse("ti-normalqa")
    record.check(kind, answered=False)
    assert DialogueMaker(kind, Templates.load()).sample(record).dialogue.answer is None
    with pytest.raises(ValueError, match="lacks answer"):
        record.check(kind)


def test_conversations_are_cut_at_whole_exchanges():
    entries = [{"from": ("human", "gpt")[i % 2], "value": f"t{i}"} for i in range(11)]
    maker = DialogueMaker(TaskKind.parse("ti-conv"), Templates.load(), max_entries=None)
    record = Record.parse({"image_id": "i", "conversations": entries})
    assert [turn.text for turn in maker.sample(record).dialogue.turns[1:]] == [f"t{i}" for i in range(10)]
    assert len(make("ti-conv", {"image_id": "i", "conversations": entries}).dialogue.turns) == 1 + 8


def test_tags_are_removed_wherever_they_stand():
    assert clean_tags("<image> hi") == "hi"
    assert clean_tags("look <image> here\n<thermal>", ["thermal"]) == "look here"
    assert clean_tags("<person> runs") == "<person> runs"


def test_captions_for_stage_1():
    record = Record.parse({"video_id": "v", "desc": ["A Man-made Lake!", "two"]})
    assert caption_of(record) == "a man made lake!"
    assert {caption_of(record, Training(random.Random(i))) for i in range(20)} == {"a man made lake!", "two"}
    with pytest.raises(ValueError, match="'v' has no caption"):
        caption_of(Record.parse({"video_id": "v"}))


# Files


ENTRIES = [
    {"image_id": "1.jpg", "caption": "a dog"},
    {"image_id": "2.jpg", "caption": "naïve café 😀", "nested": {"a": [1, {"b": "]"}]}},
    {"image_id": "3.jpg", "caption": ['with "quotes" and , ] }', "x"]},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_reading(tmp_path, indent, ascii_only):
    file = write(tmp_path, json.dumps(ENTRIES, indent=indent, ensure_ascii=ascii_only))
    annotations = AnnotationFile(file, [TaskKind.parse("ti-cap")])
    expected = [Record.parse(entry, i) for i, entry in enumerate(ENTRIES)]
    assert list(annotations) == expected
    assert annotations[-1] == expected[-1]
    assert annotations[:2] == expected[:2]
    assert list(pickle.loads(pickle.dumps(annotations))) == expected
    with pytest.raises(IndexError):
        annotations[3]


def test_reading_lines_and_byte_order_marks(tmp_path):
    lines = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in ENTRIES) + "\n"
    assert list(AnnotationFile(write(tmp_path, lines, "a.jsonl"))) == [Record.parse(e) for e in ENTRIES]
    marked = write(tmp_path, "\ufeff" + json.dumps(ENTRIES), "b.json")
    assert list(AnnotationFile(marked)) == [Record.parse(e) for e in ENTRIES]


def test_a_long_list_costs_bytes_not_objects(tmp_path):
    count = 20_000
    file = write(tmp_path, [{"image_id": f"{i}.jpg", "caption": f"number {i}"} for i in range(count)])
    annotations = AnnotationFile(file, [TaskKind.parse("ti-cap")])
    assert annotations[count - 1].captions == (f"number {count - 1}",)
    assert len(pickle.dumps(annotations)) < 20 * count
    held = sum(sys.getsizeof(value) for value in vars(annotations).values())
    assert held < 20 * count


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("[]", "no annotations"),
        ('{"image_id": 1}', "not a JSON list"),
        ('[{"caption": "a"}', "not valid JSON"),
        ('[{"caption": "a"},', "not valid JSON"),
        ("[{'caption': 1}]", "not valid JSON"),
        ('[{"image_id": 1, "caption": "a"} {"image_id": 1}]', "not valid JSON"),
    ],
)
def test_bad_files(tmp_path, content, reason):
    with pytest.raises(ValueError, match=reason) as error:
        AnnotationFile(write(tmp_path, content, "bad.json"))
    assert "bad.json" in str(error.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: does not exist"):
        AnnotationFile(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.json: is not UTF-8"):
        AnnotationFile(tmp_path / "binary.json")


@pytest.mark.parametrize(
    ("kind", "entry", "reason"),
    [
        ("ti-cap", {"image_id": "1"}, "lacks caption"),
        ("ti-cap", {"image_id": "1", "caption": ["", " "]}, r"lacks caption \(or desc\) with any words"),
        ("ti-cap", {"image_id": "1", "caption": {"a": 1}}, "'caption' must be text"),
        ("ti-cap", {"caption": "a"}, "names no image"),
        ("tva-cap", {"audio_id": "1", "caption": "a"}, "names no video"),
        ("ti-shortqa", {"image_id": "1", "caption": "a"}, "lacks question"),
        ("ti-shortqa", {"image_id": "1", "question": "q"}, "lacks answer"),
        ("ti-shortqa", {"image_id": "1", "question": ["q", "r"], "answer": ["a"]}, "must be parallel"),
        ("ti-shortqa", {"image_id": "1", "question": ["q", "r"], "answer": "a"}, "must be parallel"),
        ("ti-ocr", {"image_id": "1"}, "lacks text"),
        ("ti-conv", {"image_id": "1"}, "lacks conversations"),
        ("ti-conv", {"image_id": "1", "conversations": []}, "at least one turn"),
        ("ti-conv", {"image_id": "1", "conversations": TALK[:1]}, "an answer in conversations"),
        ("ti-conv", {"image_id": "1", "conversations": TALK[1:]}, r"conversations\[0\].*human first"),
        ("ti-conv", {"image_id": "1", "conversations": [{"from": "bot", "value": "x"}]}, "human or gpt"),
        ("ti-conv", {"image_id": "1", "conversations": [TALK[0], {"from": "gpt"}]}, r"conversations\[1\].value"),
        ("ti-cap", ["not an object"], "must be a JSON object"),
    ],
)
def test_bad_entries(tmp_path, kind, entry, reason):
    good = {"image_id": "0", "caption": "x", "question": "q", "answer": "a", "text": "t", "conversations": TALK[:2]}
    good["video_id"] = "v"
    file = write(tmp_path, [good, entry])
    kinds = [TaskKind.parse(kind)]
    with pytest.raises(ValueError, match=rf"a\.json: entry 1: .*{reason}"):
        AnnotationFile(file, kinds)
    lenient = AnnotationFile(file, kinds, invalid="skip")
    assert len(lenient) == 1
    assert len(lenient.skipped) == 1


def test_many_bad_entries_are_counted(tmp_path):
    with pytest.raises(ValueError, match=r"entry 4: (.|\n)*and 3 more$"):
        AnnotationFile(write(tmp_path, [{"image_id": "1"}] * 8), [TaskKind.parse("ti-cap")])
    with pytest.raises(ValueError, match="no valid annotations"):
        AnnotationFile(write(tmp_path, [{"image_id": "1"}] * 8), [TaskKind.parse("ti-cap")], invalid="skip")
