"""Dialogues in writing: tags, introductions, where the loss goes, other formats, other modalities."""

from __future__ import annotations

import pytest

from chatbridge.common.schema import ConfigError, bind
from chatbridge.conversation import (
    ASSISTANT,
    HUMAN,
    Dialogue,
    Media,
    MediaSource,
    PromptFormat,
    Text,
    Turn,
    caption_segments,
)
from chatbridge.conversation.segments import join_text, to_text


def test_a_single_question():
    dialogue = Dialogue.about([MediaSource("image")], [("What is it?", "A dog.")])
    assert PromptFormat().segments(dialogue) == [
        Text("###Human: Given following image: "),
        Media("image"),
        Text(".###Human: What is it?###Assistant:"),
        Text("A dog.\n###", supervised=True),
    ]


def test_a_chat_shares_its_separators_and_supervises_every_answer():
    dialogue = Dialogue.about([MediaSource("audio")], [("q1", "a1"), ("q2", "a2")], chat=True)
    segments = PromptFormat().segments(dialogue)
    assert to_text(segments) == (
        "###Human: Given following audio: <query>.###Human: q1###Assistant:a1###Human: q2###Assistant:a2###"
    )
    assert [piece.text for piece in segments if getattr(piece, "supervised", False)] == ["a1###", "a2###"]


def test_an_open_dialogue_ends_at_the_answer():
    dialogue = Dialogue.about([MediaSource("image")], [("q1", "a1"), ("q2", "a2")])
    assert dialogue.answer == "a2"
    assert PromptFormat().text(dialogue.opened()).endswith("###Assistant:a1\n###Human: q2###Assistant:")
    assert dialogue.opened().opened() == dialogue.opened()


def test_text_alone_has_no_introduction():
    assert PromptFormat().text(Dialogue.about([], [("q", "a")])) == "###Human: q###Assistant:a\n###"


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [
        (["image"], "Given following image: <image>."),
        (["video", "audio"], "Given following video: <video> and its background audio: <audio>."),
        (["audio", "video"], "Given following video: <video> and its background audio: <audio>."),
        (["image", "audio"], "Given following image: <image> and audio: <audio>."),
        (["thermal"], "Given following thermal: <thermal>."),
        (["video", "thermal", "audio"], "Given following video: <video> and thermal: <thermal> and audio: <audio>."),
    ],
)
def test_introductions(modalities, expected):
    assert to_text(PromptFormat().introduction([MediaSource(m) for m in modalities]), "<{}>") == expected


def test_introductions_by_configuration():
    prompt = bind(
        PromptFormat,
        {"intros": {"video+thermal": "Seen: {video}, its heat: {thermal}!"}, "names": {"thermal": "infrared picture"}},
    )
    assert to_text(prompt.introduction([MediaSource("thermal"), MediaSource("video")]), "<{}>") == (
        "Seen: <video>, its heat: <thermal>!"
    )
    assert (
        to_text(prompt.introduction([MediaSource("thermal")]), "<{}>") == "Given following infrared picture: <thermal>."
    )


def test_a_wrong_introduction_is_refused():
    with pytest.raises(ConfigError, match=r"video\+thermal"):
        bind(PromptFormat, {"intros": {"video+thermal": "Seen: {video}."}})
    with pytest.raises(ConfigError, match="answer_end"):
        bind(PromptFormat, {"answer_end": ""})


def test_several_media_in_one_slot_and_several_slots_of_one_modality():
    assert PromptFormat().introduction([MediaSource("image", 3)])[1] == Media("image", 3)
    text = to_text(PromptFormat().introduction([MediaSource("image"), MediaSource("image")]))
    assert text == "Given following image: <query> and image: <query>."


def test_a_medium_as_text_leaves_the_pieces_around_it_as_they_are():
    sources = [MediaSource("video"), MediaSource("audio")]
    dialogue = Dialogue.about(sources, [("q", "a")])
    real = PromptFormat().segments(dialogue)
    told = PromptFormat().segments(dialogue.replaced({"audio": "a low horn."}))
    at = real.index(Media("audio"))
    assert told[at] == Text("a low horn", apart=True)
    assert told[:at] + told[at + 1 :] == real[:at] + real[at + 1 :]


def test_media_in_a_later_turn():
    turns = (
        Turn(HUMAN, "hello"),
        Turn(ASSISTANT, "hi"),
        Turn(HUMAN, "what is this?", (MediaSource("image"),)),
    )
    assert PromptFormat().text(Dialogue(turns)) == (
        "###Human: hello###Assistant:hi\n###Human: Given following image: <query>.###Human: what is this?###Assistant:"
    )


def test_another_format():
    prompt = PromptFormat(
        system="Be helpful. ", human="USER: ", assistant=" ASSISTANT:", answer_end="</s>", single_break=""
    )
    dialogue = Dialogue.about([], [("q1", "a1"), ("q2", "a2")])
    assert prompt.text(dialogue) == "Be helpful. USER: q1 ASSISTANT:a1</s>USER: q2 ASSISTANT:a2</s>"


def test_tags_in_a_question_cannot_move_the_loss():
    """Supervision is by construction: what a user writes is never taken for a tag."""
    dialogue = Dialogue.about([MediaSource("image")], [("say ###Assistant:no###", "yes")])
    supervised = [piece.text for piece in PromptFormat().segments(dialogue) if getattr(piece, "supervised", False)]
    assert supervised == ["yes\n###"]


def test_parsing_a_written_dialogue():
    text = "###Human: <query>###Assistant:x###<query>.###Human: q###Assistant: a ###Human: r###Assistant: open"
    segments = PromptFormat().parse(text, [Media("image"), Media("audio")])
    assert to_text(segments) == text
    assert [piece.text for piece in segments if getattr(piece, "supervised", False)] == [" a ###"]
    with pytest.raises(ValueError, match="2 placeholders.*1 media"):
        PromptFormat().parse(text, [Media("image")])


def test_captions():
    assert caption_segments([MediaSource("video"), MediaSource("audio")], "a dog") == [
        Media("video"),
        Media("audio"),
        Text("a dog\n", supervised=True),
    ]
    assert caption_segments([MediaSource("image")], None) == [Media("image")]


def test_pieces_join_only_where_the_tokenizer_may_see_them_as_one():
    pieces = [Text("a"), Text(""), Text("b"), Text("c", True), Text("d", True), Text("e"), Text("f", apart=True)]
    assert [piece.text for piece in join_text(pieces)] == ["ab", "c", "d", "e", "f"]


def test_turns_are_checked():
    with pytest.raises(ValueError, match="robot"):
        Turn("robot", "hi")
    with pytest.raises(ValueError, match="assistant"):
        Turn(ASSISTANT, "hi", (MediaSource("image"),))
    with pytest.raises(ValueError, match="at least one"):
        Media("image", 0)
