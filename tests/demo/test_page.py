"""The page without a browser: gradio's own client asks, streams, mutes, stops, compares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gradio_client import handle_file

from chatbridge.inference import ChatSession
from tests.demo.tools import Shown, User, alone, page, slowly, text_of
from tests.inference.tools import make_engine
from tests.patience import PATIENCE, until


@pytest.fixture(scope="module")
def running(tmp_path_factory, engine):
    with page(tmp_path_factory.mktemp("page"), [engine], parallel=1, max_waiting=2) as served:
        yield served


def test_a_conversation_about_a_picture_a_video_and_a_sound(engine, running, files, user):
    picture, video, sound = files["a.png"], files["loud.mp4"], files["a.wav"]
    expected = alone(engine, ("what is it?", [picture]), ("and this?", [video, sound]), ("why?", []))
    first = user.ask("what is it?", picture)
    assert first.answer == expected[0] and first.labels == ["1. picture a.png"] and first.seen == [0]
    assert "<img" in first.markup(0) and "a.png" in first.markup(0) and text_of(first.messages[0]) == "what is it?"
    second = user.ask("and this?", video, sound)
    assert second.answer == expected[1]
    assert second.labels[1:] == ["2. video loud.mp4", "3. sound of loud.mp4", "4. sound a.wav"]
    shown = second.markup(2)
    assert shown.count("<video") == 1 and shown.count("<audio") == 1 and shown.count("spectrogram.png") == 4
    third = user.ask("why?")
    assert third.answer == expected[2] and len(third.messages) == 6
    assert "tokens" in third.status and "kept from before" in third.status and not third.wrong
    assert third.typed == {"text": "", "files": []}


def test_an_answer_comes_piece_by_piece(engine, files, user):
    with slowly(engine):
        job = user.begin("what is it?", files["b.png"], max_new_tokens=30)
        job.result(timeout=PATIENCE)
    seen = [text_of(shown.messages[-1]) for shown in map(Shown.of, job.outputs()) if len(shown.messages) == 2]
    assert len(set(seen)) > 5 and all(later.startswith(earlier) for earlier, later in zip(seen, seen[1:], strict=False))
    assert job.outputs()[0][-1].count("Looking at b.png (1 of 1)")


def test_muting_and_answering_again(engine, files, user):
    heard = user.ask("fits?", files["loud.mp4"])
    session = ChatSession(engine)
    assert heard.answer == session.say("fits?", videos=[files["loud.mp4"]]).text
    muted = user.do("mute", [0])
    assert muted.seen == [0] and '<span class="cb-muted">' in muted.markup(0)
    assert "what does it say without" in muted.status
    again = user.do("regenerate")
    session.mute("audio")
    assert again.answer == session.regenerate().text != heard.answer
    assert "without sound of loud.mp4" in again.markup(1)
    assert user.do("mute", [0, 1]).markup(0).count("cb-muted") == 0
    assert user.do("regenerate").answer == heard.answer


def test_settings_are_obeyed_and_held_to_their_ranges(engine, files, user):
    drawn = user.ask("what?", files["a.png"], temperature=1.5, seed=7, max_new_tokens=12)
    assert "seed 7" in drawn.status and drawn.status.startswith("12 tokens") and "cut off" in drawn.markup(1)
    assert user.do("regenerate", temperature=1.5, seed=7, max_new_tokens=12).answer == drawn.answer
    assert user.do("regenerate", num_beams=3, max_new_tokens=5).status.startswith("5 tokens")
    with pytest.raises(Exception, match="(?i)beams|maximum|greater"):
        user.do("regenerate", num_beams=1000)


def test_stop_keeps_what_was_said(engine, files, user):
    with slowly(engine):
        job = user.begin("what is it?", files["a.png"])
        until(lambda: any(len(shown[0]) == 2 for shown in job.outputs()))
        assert "Stopping" in user.do("stop")
        shown = Shown.of(job.result(timeout=PATIENCE))
    whole = alone(engine, ("what is it?", [files["a.png"]]))[0]
    assert whole.startswith(shown.answer) and 0 < len(shown.answer) < len(whole)
    assert "stopped" in shown.markup(1) and not shown.wrong
    assert user.do("regenerate").answer == whole


def test_stop_while_waiting_gives_the_question_back(engine, running, files, user):
    other = User(running)
    with slowly(engine):
        first = other.begin("what is it?", files["a.png"])
        until(first.outputs)
        waiting = user.begin("and mine?", files["b.png"])
        until(lambda: waiting.status().rank is not None)
        user.do("stop")
        other.do("stop")
        shown = Shown.of(waiting.result(timeout=PATIENCE))
    assert shown.messages == [] and shown.typed["text"] == "and mine?"
    assert [Path(file["path"]).name for file in shown.typed["files"]] == ["b.png"]


def test_the_queue_has_a_bound(engine, running, files):
    users = [User(running) for _ in range(4)]
    with slowly(engine):
        jobs = [users[0].begin("one")]
        until(jobs[0].outputs)
        for user in users[1:3]:
            jobs.append(user.begin("more"))
            until(lambda: jobs[-1].status().rank is not None)  # noqa: B023
        with pytest.raises(Exception, match="(?i)queue is full|too many|busy"):
            users[3].ask("too many")
        # Gradio's client would have to wait in the queue for that, too.
        running.conversations.find(users[0].name).stop()
        for user, job in zip(users[1:], jobs[1:], strict=False):
            until(job.outputs)
            user.do("stop")
        for job in jobs:
            job.result(timeout=PATIENCE)
    assert users[3].ask("now?").answer == alone(engine, ("now?", []))[0]


def test_clear_forgets_words_and_files(running, files, user):
    user.ask("what is it?", files["a.png"])
    folder = running.conversations.find(user.name).folder
    assert any(folder.rglob("*.png"))
    shown = user.do("clear")
    assert shown.messages == [] and shown.labels == [] and not folder.exists()
    assert user.ask("hello?").markup(0) == ""


def test_clear_ends_the_answer_that_is_given(engine, files, user):
    with slowly(engine):
        job = user.begin("what is it?", files["a.png"])
        until(lambda: any(len(shown[0]) == 2 for shown in job.outputs()))
        assert user.do("clear").messages == []
        job.result(timeout=PATIENCE)
    assert len(user.ask("hello?").messages) == 2


def test_a_conversation_is_saved_and_loaded(engine, running, files, user, tmp_path):
    user.ask("fits?", files["loud.mp4"])
    user.do("mute", [1])
    path, _ = user.do("save")
    saved = Path(path["path"] if isinstance(path, dict) else path)
    plain = json.loads(saved.read_text())
    assert plain["turns"][0]["media"][0]["path"] is None and plain["turns"][0]["media"][0]["muted"]
    other = User(running)
    shown = other.do("load", handle_file(saved))
    assert shown.status == "1 turn loaded" and shown.seen == [1] and "<video" in shown.markup(0)
    loaded = running.conversations.find(other.name)
    assert all(Path(medium.source).is_relative_to(loaded.folder) for medium in loaded.media)
    assert other.do("regenerate").answer == user.do("regenerate").answer
    bad = tmp_path / "bad.json"
    bad.write_text("{not json")
    assert "cannot be read as JSON" in other.do("load", handle_file(bad)).status
    plain["turns"][0]["media"][0] |= {"path": "/etc/passwd", "data": None}
    bad.write_text(json.dumps(plain))
    refused = other.do("load", handle_file(bad))
    assert refused.wrong and "is not allowed here" in refused.status and len(refused.messages) == 2
    bad.write_text(json.dumps(str(saved)))  # the name of a file of the server
    refused = other.do("load", handle_file(bad))
    assert refused.wrong and "no conversation" in refused.status
    plain["turns"][0]["media"] = [{**plain["turns"][0]["media"][1], "name": "<img src=x>.mp4", "muted": False}]
    bad.write_text(json.dumps(plain))
    assert "&lt;img src=x&gt;.mp4" in other.do("load", handle_file(bad)).markup(0)


def test_two_models_side_by_side(tmp_path, engine, files):
    other = make_engine(tmp_path / "other", name="instruction")
    for parameter in other.model.bridge_of("image").parameters():
        parameter.data.mul_(0.5)
    with page(tmp_path / "page", [engine, other], names=["a/one", "b/two"]) as running:
        user = User(running)
        shown = user.ask("what is it?", files["a.png"])
        expected = [alone(one, ("what is it?", [files["a.png"]]))[0] for one in (engine, other)]
        assert [text_of(chat[-1]) for chat in shown.chats] == expected and expected[0] != expected[1]
        user.do("mute", [])
        again = user.do("regenerate")
        assert [text_of(chat[-1]) for chat in again.chats] != expected
        assert all("without picture a.png" in chat[-1]["content"][0]["value"] for chat in again.chats)
