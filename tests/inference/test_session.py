"""Conversations: turns, reuse, regenerating, editing, cancelling, muting, the context."""

from __future__ import annotations

import logging
import random
import threading

import pytest
import torch

from chatbridge.inference import ChatSession, Exchange, GenerationSettings
from chatbridge.inference.prompt import PromptWriter
from chatbridge.processors.base import MediaError
from tests.inference.tools import SHORT
from tests.patience import PATIENCE


@pytest.fixture
def session(engine):
    return ChatSession(engine, SHORT)


def shown(session):
    return [(medium.modality, medium.name) for medium in session.media]


class TestSaying:
    def test_media_of_every_kind_in_any_turn_and_order(self, session, files):
        session.say("what is it?", audios=[files["a.wav"]], images=[files["a.png"], files["b.png"]])
        session.say("and now?")
        session.say(media=[files["loud.mp4"], files["b.wav"], files["a.png"]])
        session.say("both", videos=[files["loud.mp4"]], sound=False)
        assert [len(turn.media) for turn in session.turns] == [3, 0, 4, 1]
        assert shown(session) == [
            ("image", "a.png"), ("image", "b.png"), ("audio", "a.wav"),
            ("video", "loud.mp4"), ("audio", "loud.mp4"), ("audio", "b.wav"), ("image", "a.png"),
            ("video", "loud.mp4"),
        ]  # fmt: skip
        assert all(turn.answer for turn in session.turns)

    def test_arguments_that_there_are_none_of(self, session, files):
        for call in (session.say, session.stream, session.attach):
            with pytest.raises(TypeError, match="image"):
                call(image=[files["a.png"]])
        assert not session.turns

    def test_answers_depend_on_what_is_shown(self, engine, files):
        answers = {
            str(ChatSession(engine, SHORT).say("what?", media=[files[name]], sound=False))
            for name in ("a.png", "b.png", "a.wav", "b.wav", "loud.mp4", "still.mp4")
        }
        assert len(answers) == 6

    def test_bytes_are_as_good_as_files(self, engine, files):
        by_path = ChatSession(engine, SHORT).say("what?", images=[files["a.png"]])
        by_bytes = ChatSession(engine, SHORT).say("what?", media=[files["a.png"].read_bytes()])
        assert by_bytes.token_ids == by_path.token_ids

    def test_content_counts_and_not_the_name(self, session, files, tmp_path):
        misnamed = tmp_path / "picture.mp4"
        misnamed.write_bytes(files["a.png"].read_bytes())
        session.say("what?", media=[misnamed])
        assert shown(session) == [("image", "picture.mp4")]
        text = tmp_path / "text.mp4"
        text.write_text("a text that calls itself a video")
        with pytest.raises(MediaError, match="text.mp4.*no picture, video or sound"):
            session.say("what?", media=[text])

    def test_sound_that_is_not_there(self, session, files):
        session.say("what?", videos=[files["still.mp4"]])
        assert shown(session) == [("video", "still.mp4")]
        with pytest.raises(MediaError, match="no sound track"):
            session.say("what?", videos=[files["still.mp4"]], sound=True)

    def test_an_error_leaves_the_conversation_as_it_was(self, session, files, tmp_path):
        before = session.say("what?", images=[files["a.png"]])
        broken = tmp_path / "broken.png"
        broken.write_bytes(files["a.png"].read_bytes()[:300])
        for wrong, message in ((broken, "broken.png"), (tmp_path / "none.png", "does not exist")):
            with pytest.raises(MediaError, match=message):
                session.say("and?", images=[wrong])
        assert len(session.turns) == 1
        with pytest.raises(ValueError, match="nothing is asked"):
            session.say("")
        assert session.regenerate().token_ids == before.token_ids

    def test_a_file_that_changes_is_noticed(self, engine, files, tmp_path):
        file = tmp_path / "mine.png"
        file.write_bytes(files["a.png"].read_bytes() + b"an end of its own")
        medium = engine.medium(file)
        file.write_bytes(files["b.png"].read_bytes())
        with pytest.raises(MediaError, match="has changed"):
            ChatSession(engine, SHORT).say("what?", media=[medium])

    def test_modalities_that_the_model_lacks(self, engine, files):
        with pytest.raises(MediaError, match="thermal.*audio"):
            engine.medium(files["a.png"], "thermal")


class TestReuse:
    def test_a_turn_costs_its_own_positions_only(self, engine, session, files):
        read = []
        layer = engine.model.llm.model.model.layers[0].input_layernorm
        handle = layer.register_forward_hook(lambda _m, _a, out: read.append(out.shape[1]))
        first = session.say("what is it?", images=[files["a.png"]], audios=[files["a.wav"]])
        assert read == [first.prompt_positions] + [1] * 9
        read.clear()
        reply = session.say("and why?")
        # A past answer is written anew, in case its tokens were not those that its text is made of.
        new = [f"{first.text}###", "Human: and why?###Assistant:"]
        assert read[0] <= sum(len(engine.tokenizer.encode(text)) for text in new) < first.prompt_positions
        assert read[0] == reply.prompt_positions - reply.reused_positions
        read.clear()
        again = session.regenerate()
        handle.remove()
        assert (read[0], again.reused_positions) == (1, reply.prompt_positions - 1)
        assert again.token_ids == reply.token_ids

    def test_media_are_encoded_once(self, engine, files, monkeypatch):
        runs = []
        encode = engine.model.encode
        monkeypatch.setattr(engine.model, "encode", lambda m, x: runs.append(m) or encode(m, x))
        engine.clear_media_cache()
        for _ in range(2):
            session = ChatSession(engine, SHORT)
            session.say("what?", images=[files["a.png"]])
            session.say("and?", images=[files["a.png"], files["b.png"]])
        assert runs == ["image", "image"]

    @pytest.mark.parametrize("seed", range(4))
    def test_is_exact_whatever_is_done(self, engine, files, seed):
        """The same random actions on a session that reuses and on one that reads everything anew."""
        rng = random.Random(seed)
        with_reuse, without = ChatSession(engine, SHORT), ChatSession(engine, SHORT, reuse=False)
        reused = 0
        for number in range(9):
            action = rng.choice(["say", "say", "regenerate", "edit", "mute", "beams"])
            names = rng.sample(sorted(files), rng.randrange(3))
            place, which, text = rng.randrange(9), rng.randrange(9), f"question {rng.randrange(99)}?"
            sampled = GenerationSettings(max_new_tokens=8, temperature=2.0, seed=number)
            replies = []
            for session in (with_reuse, without):
                turns, media = len(session.turns), len(session.media)
                if action == "mute" and media:
                    medium = session.media[which % media]
                    session.mute(which % media, not medium.muted)
                if action == "say" or not turns:
                    replies.append(session.say(text, media=[files[name] for name in names]))
                elif action == "edit":
                    replies.append(session.edit(place % turns, text))
                elif action == "beams":
                    replies.append(session.regenerate(GenerationSettings(max_new_tokens=6, num_beams=3)))
                else:
                    replies.append(session.regenerate(sampled if action == "regenerate" else SHORT))
            assert replies[0].token_ids == replies[1].token_ids
            assert (replies[0].text, replies[0].finish) == (replies[1].text, replies[1].finish)
            assert replies[1].reused_positions == 0
            reused += replies[0].reused_positions
        assert reused > 0
        assert with_reuse.turns == without.turns

    def test_a_failure_half_way_leaves_nothing_wrong_behind(self, engine, files, monkeypatch):
        session = ChatSession(engine, SHORT)
        session.say("what?", images=[files["a.png"]])
        layer = engine.model.llm.model.model.layers[1]
        handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError):
            session.say("and?")
        handle.remove()
        assert len(session.turns) == 1
        expected = ChatSession(engine, SHORT, reuse=False)
        expected.turns = list(session.turns)
        assert session.say("and?").token_ids == expected.say("and?").token_ids


class TestChanging:
    def test_edit_forgets_what_followed(self, session, files):
        session.say("one", images=[files["a.png"]])
        session.say("two")
        session.say("three")
        reply = session.edit(1, "another")
        assert [turn.text for turn in session.turns] == ["one", "another"]
        assert session.turns[-1].answer == reply.text
        session.edit(0, media=[files["b.wav"]])
        assert shown(session) == [("audio", "b.wav")]
        assert session.turns[0].text == "one"
        with pytest.raises(ValueError, match="no turn 5"):
            session.edit(5, "x")

    def test_nothing_to_regenerate(self, session):
        with pytest.raises(ValueError, match="conversation has 0"):
            session.regenerate()

    def test_mute(self, engine, session, files):
        heard = session.say("what?", images=[files["a.png"]], audios=[files["a.wav"]])
        session.mute("audio")
        muted = session.regenerate()
        assert muted.token_ids != heard.token_ids
        other = ChatSession(engine, SHORT)
        other.say("what?", images=[files["a.png"]], audios=[files["b.wav"]])
        other.mute(1)
        assert other.regenerate().token_ids == muted.token_ids  # one silence is like another
        session.mute("audio", False)
        assert session.regenerate().token_ids == heard.token_ids
        medium = session.media[0]
        one, other = ChatSession(engine, SHORT), ChatSession(engine, SHORT)
        for conversation in (one, other):
            conversation.say("what?", media=[medium])
        one.mute(0)
        assert (other.media[0].muted, medium.muted) == (False, False)
        for which in ("video", 7, -1):
            with pytest.raises(ValueError, match="nothing is shown as"):
                session.mute(which)

    def test_clear(self, session, files):
        first = session.say("what?", images=[files["a.png"]])
        session.clear()
        assert session.turns == []
        again = session.say("what?", images=[files["a.png"]])
        assert (again.token_ids, again.reused_positions) == (first.token_ids, 0)


class TestStreaming:
    def test_pieces_make_the_answer(self, engine, session, files):
        answer = session.stream("what?", images=[files["a.png"]])
        pieces = list(answer)
        assert len(pieces) > 3
        assert "".join(pieces) == answer.reply.text == session.turns[0].answer
        assert answer.reply.finish == "length"
        assert len(answer.reply.token_ids) == SHORT.max_new_tokens
        assert ChatSession(engine, SHORT).say("what?", images=[files["a.png"]]).text == answer.reply.text

    def test_nothing_is_computed_before_it_is_asked_for(self, session):
        early = session.stream("what?")
        assert session.turns == []
        session.say("other")
        with pytest.raises(ValueError, match="the conversation went on"):
            next(early)
        late = session.stream_regenerate()
        session.clear()
        with pytest.raises(ValueError, match="the conversation went on"):
            next(late)
        assert session.turns == []

    def test_one_answer_at_a_time(self, session):
        answer = session.stream("what?")
        next(answer)
        for action in (lambda: session.say("x"), session.regenerate, session.clear, lambda: session.mute("image")):
            with pytest.raises(ValueError, match="an answer is being given"):
                action()
        answer.close()
        session.regenerate()

    def test_closing_keeps_what_was_said(self, engine, session):
        whole = ChatSession(engine, SHORT).say("what?")
        answer = session.stream("what?")
        said = next(answer) + next(answer)
        answer.close()
        assert session.turns[0].answer == answer.reply.text
        assert whole.text.startswith(said.strip()) and len(answer.reply.token_ids) < len(whole.token_ids)
        assert (session.turns[0].finish, answer.reply.finish) == ("cancelled", "cancelled")
        assert session.regenerate().text == whole.text

    def test_cancelling_from_another_thread(self, session):
        answer = session.stream("what?", settings=GenerationSettings(max_new_tokens=100))
        arrived = threading.Event()

        def cancel():
            arrived.wait(PATIENCE)
            session.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        pieces = [next(answer)]
        arrived.set()
        thread.join(10)
        pieces += list(answer)
        assert answer.reply.finish == session.turns[0].finish == "cancelled"
        assert len(answer.reply.token_ids) < 100
        assert "".join(pieces) == answer.reply.text == session.turns[0].answer

    def test_cancelled_before_the_first_token(self, session):
        answer = session.stream("what?")
        session.cancel()
        assert list(answer) == []
        assert (session.turns[0].text, session.turns[0].answer) == ("what?", None)
        full = session.regenerate()
        retry = session.stream_regenerate()
        session.cancel()
        assert retry.reply.finish == "cancelled"
        assert session.turns[0].answer == full.text  # the answer there was stays

    def test_beams_can_be_cancelled(self, session):
        answer = session.stream("what?", settings=GenerationSettings(max_new_tokens=100, num_beams=2))
        asked = []
        step = session.engine.model.llm.model.forward

        def forward(*args, **kwargs):
            asked.append(1)
            if len(asked) == 4:
                session.cancel()
            return step(*args, **kwargs)

        session.engine.model.llm.model.forward = forward
        try:
            reply = answer.reply
        finally:
            session.engine.model.llm.model.forward = step
        assert reply.finish == "cancelled" and len(asked) < 10

    def test_stop_texts_end_it_however_they_fall_on_tokens(self, engine, monkeypatch):
        whole = ChatSession(engine, SHORT).say("what?").text
        for start in range(1, len(whole) - 3, 2):
            stop = whole[start : start + 3]
            monkeypatch.setattr(engine, "stop", (stop,))
            session = ChatSession(engine, SHORT)
            answer = session.stream("what?")
            pieces = list(answer)
            assert "".join(pieces) == answer.reply.text == whole.split(stop)[0].strip()
            assert answer.reply.finish == "stop"


class TestContext:
    def test_oldest_turns_go_as_a_whole(self, engine, files, caplog):
        session = ChatSession(engine, SHORT)
        session.say("the first question", images=[files["a.png"]])
        dropped = 0
        with caplog.at_level(logging.WARNING, logger="chatbridge"):
            for number in range(12):
                reply = session.say(f"question {number}", audios=[files["a.wav"]])
                assert reply.prompt_positions <= 201
                assert reply.dropped_turns >= dropped
                dropped = reply.dropped_turns
        assert 0 < dropped < len(session.turns) == 13
        assert f"the oldest {dropped} turns" in caplog.text
        prompt = engine.prompt(session.turns, SHORT)
        media = [position for position in prompt.positions if not isinstance(position, int)]
        assert len(media) == 4 * len(prompt.media) == 4 * (13 - prompt.dropped)
        alone = ChatSession(engine, SHORT, reuse=False)
        alone.turns = session.turns[dropped:]
        assert alone.regenerate().token_ids == session.regenerate().token_ids

    def test_a_long_conversation_is_cut_without_reading_it_again_for_every_turn(self, engine, monkeypatch):
        turns = [Exchange(f"question {number}?", answer="so so " * (number % 5)) for number in range(500)]
        turns[100].text = "long " * 20_000
        turns.append(Exchange("and now?"))
        limit, written = engine.prompt(turns[-1:], SHORT).positions, []
        write = PromptWriter.write
        monkeypatch.setattr(PromptWriter, "write", lambda self, some: written.append(len(some)) or write(self, some))
        writer = engine.writer
        prompt = writer.fit(turns, 150)
        assert len(limit) < len(prompt.positions) <= 150 and len(written) < 15 and max(written) == 400
        assert prompt.positions == write(writer, turns[prompt.dropped :])[0]
        assert len(write(writer, turns[prompt.dropped - 1 :])[0]) > 150

    def test_a_question_that_never_fits(self, engine, session, files):
        session.say("before")
        with pytest.raises(ValueError, match="takes .* positions .*show fewer media"):
            session.say("what?", images=[files["a.png"]] * 60)
        with pytest.raises(ValueError, match="10,000,000 characters"):
            session.say("x" * 10_000_000)
        with pytest.raises(ValueError, match="max_new_tokens .* context of 256"):
            session.say("what?", settings=GenerationSettings(max_new_tokens=256))
        assert [turn.text for turn in session.turns] == ["before"]

    def test_room_for_the_answer_is_kept(self, engine, session):
        for number in range(6):
            reply = session.say(f"question {number}?", settings=GenerationSettings(max_new_tokens=180))
            assert reply.prompt_positions + len(reply.token_ids) <= 256
        assert reply.dropped_turns > 0


def test_sessions_of_one_engine_do_not_disturb_each_other(engine, files):
    """Each in its own thread, sampling with its own seed, while the others sample, too."""
    settings = [GenerationSettings(max_new_tokens=12, temperature=1.5, seed=seed) for seed in range(4)]
    names = ["a.png", "a.wav", "still.mp4", "b.png"]

    def talk(number):
        session = ChatSession(engine, settings[number])
        ids = [session.say("what?", media=[files[names[number]]]).token_ids]
        return [*ids, session.say("and then?").token_ids]

    expected = [talk(number) for number in range(4)]
    got = [None] * 4
    torch.manual_seed(3)

    def run(number):
        got[number] = talk(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected
    assert len({str(ids) for ids in got}) == 4
