"""Conversations to JSON and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chatbridge.inference import ChatSession
from tests.inference.tools import SHORT, write_media


@pytest.fixture
def files(tmp_path):
    return write_media(tmp_path / "files")


@pytest.fixture
def session(engine, files):
    session = ChatSession(engine, SHORT)
    session.say("what is it? 漢", images=[files["a.png"]], videos=[files["loud.mp4"]])
    session.say("and this?", audios=[files["b.wav"].read_bytes()])
    session.mute("image")
    unanswered = session.stream("unanswered")
    session.cancel()
    assert unanswered.reply.text == ""
    return session


def same(one, other):
    def plain(session):
        return [replace(t, media=[(m.modality, m.digest, m.muted) for m in t.media]) for t in session.turns]

    return plain(one) == plain(other)


@pytest.mark.parametrize("embed", [False, True])
def test_there_and_back(engine, session, files, tmp_path, embed):
    file = session.save(tmp_path / "talk.json", embed=embed)
    other = ChatSession(engine, SHORT)
    if embed:
        for name in files.values():
            name.unlink()
    other.load(file)
    assert same(session, other)
    if not embed:
        assert other.edit(1, "and this one?").token_ids == session.edit(1, "and this one?").token_ids
        paths = [medium.get("path") for turn in json.loads(file.read_text())["turns"] for medium in turn["media"]]
        assert paths == ["files/a.png", "files/loud.mp4", "files/loud.mp4", None]
    else:
        engine.clear_media_cache()
        assert other.regenerate().text


def test_a_conversation_moves_with_its_folder(engine, session, files, tmp_path):
    session.save(tmp_path / "talk.json")
    (tmp_path / "elsewhere").mkdir()
    for name in ("talk.json", "files"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    other = ChatSession(engine, SHORT)
    other.load(tmp_path / "elsewhere" / "talk.json")
    assert same(session, other)


def test_by_hand_and_from_strangers(engine, session, files):
    plain = session.export()
    other = ChatSession(engine, SHORT)
    other.load(plain)
    assert same(session, other)
    with pytest.raises(ValueError, match=r"turns\[0\].*named by path, which is not allowed"):
        other.load(plain, files=False)
    other.load(session.export(embed=True), files=False)
    assert same(session, other)


@pytest.mark.parametrize("kind", [str, Path])
def test_strangers_name_no_conversation_of_this_machine(engine, session, files, tmp_path, kind):
    saved = session.save(tmp_path / "talk.json")
    other = ChatSession(engine, SHORT)
    with pytest.raises(ValueError, match="expected a mapping of keys"):
        other.load(kind(saved), files=False)
    assert other.turns == []
    other.load(kind(saved))
    assert same(session, other)


def change(path, value):
    def do(plain):
        *way, last = path
        for step in way:
            plain = plain[step]
        plain[last] = value

    return do


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(["format"], "other"), "format: 'other' is not allowed"),
        (change(["version"], 2), "version is 2, this ChatBridge reads up to 1"),
        (change(["version"], "1"), "version: expected int"),
        (change(["turn"], []), "turn: unknown key; did you mean 'turns'"),
        (change(["turns"], {}), "turns: expected a list"),
        (change(["turns", 1, "answer"], 5), r"turns\[1\].answer: expected str"),
        (change(["turns", 1, "finish"], "tired"), "finish: 'tired' is not allowed"),
        (change(["turns", 0, "media", 0, "modality"], "smell"), r"turns\[0\]: .*shown as 'smell'"),
        (change(["turns", 0, "media", 0, "path"], "gone.png"), "gone.png: does not exist"),
        (change(["turns", 0, "media", 0, "sha256"], "0" * 64), r"turns\[0\]: a.png: is not the file it was"),
        (change(["turns", 0, "media", 0, "data"], "AAAA"), "give either path or data"),
        (change(["turns", 1, "media", 0, "data"], "%%%"), "not base64"),
        (change(["turns", 2], {}), r"turns\[2\]: a turn asks or shows something"),
    ],
)
def test_what_is_no_conversation_is_refused_whole(engine, session, spoil, message):
    plain = session.export()
    plain["turns"] = [json.loads(json.dumps(turn)) for turn in plain["turns"]]
    spoil(plain)
    other = ChatSession(engine, SHORT)
    other.say("before")
    with pytest.raises(ValueError, match=message):
        other.load(plain)
    assert [turn.text for turn in other.turns] == ["before"]


def test_files_that_are_no_json(engine, tmp_path):
    session = ChatSession(engine)
    for content, said in ((b"{", "not valid JSON"), (b"\xff\xfe", "not UTF-8"), (b"[" * 100_000, "nested too deeply")):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"bad.json: is {said}"):
            session.load(tmp_path / "bad.json")
    for content in ("[]", "3", "null"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match="bad.json: expected a mapping"):
            session.load(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="none.json: does not exist"):
        session.load(tmp_path / "none.json")


def test_text_that_cannot_be_written_is_repaired(engine, files, tmp_path):
    session = ChatSession(engine, SHORT)
    odd = tmp_path / "files" / "caf\udce9.png"
    odd.write_bytes(files["a.png"].read_bytes())
    session.say("half \ud83d and whole \ud83d\ude00", images=[odd])
    json.dumps(session.export(embed=True), ensure_ascii=False).encode()
    saved = session.save(tmp_path / "talk.json")
    saved.read_text(encoding="utf-8")
    other = ChatSession(engine, SHORT)
    other.load(saved)
    assert other.turns[0].text == "half \ufffd and whole 😀" and other.edit(0, "and?").text is not None
    plain = json.loads(json.dumps(session.export(embed=True)))
    plain["turns"][0]["text"], plain["turns"][0]["answer"] = "q\ud83d", "a\ud83d"
    other.load(plain)
    assert (other.turns[0].text, other.turns[0].answer) == ("q\ufffd", "a\ufffd")
