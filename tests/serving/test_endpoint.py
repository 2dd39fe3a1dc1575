"""The HTTP endpoint, asked by OpenAI's own client: the same answers as a session's, reuse, settings, many clients."""

from __future__ import annotations

import random
import threading

import httpx
import openai
import pytest

from chatbridge.inference import ChatSession, GenerationSettings
from chatbridge.inference.text_stream import StopTextFilter
from chatbridge.serving.session_pool import SessionPool
from tests.inference.tools import SHORT
from tests.patience import PATIENCE, until
from tests.serving.tools import Served, assistant, data_url, http, image, sound, text, user, video


@pytest.fixture(scope="module")
def served(engine, files):
    served = Served(engine, folder=files["a.png"].parent)
    yield served
    served.close()


@pytest.fixture
def ask(served):
    client = served.client()

    def ask(*messages, **more):
        given = {"model": "tiny", "messages": list(messages), "max_tokens": 10} | more
        return client.chat.completions.create(**given)

    return ask


def said(completion):
    return completion.choices[0].message.content


def alone(engine, *args, **kwargs):
    return ChatSession(engine, SHORT, reuse=False).say(*args, **kwargs)


class TestAnswers:
    def test_a_picture(self, engine, ask, files):
        completion = ask(user("what is it?", image(data_url(files["a.png"], "image/png"))))
        expected = alone(engine, "what is it?", images=[files["a.png"]])
        choice = completion.choices[0]
        assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
        assert choice.finish_reason == "length"
        usage = completion.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_positions, 10)
        assert usage.total_tokens == usage.prompt_tokens + 10
        assert completion.id.startswith("chatcmpl-") and completion.model == "tiny"

    def test_media_of_every_kind(self, engine, ask, files):
        """Data URLs, names, file:// and input_audio: what the session says of the same files."""
        loud, still = files["loud.mp4"], files["still.mp4"]
        for part, expected in (
            (sound(files["a.wav"]), {"audios": [files["a.wav"]]}),
            (sound(files["a.wav"], "mp3"), {"audios": [files["a.wav"]]}),  # content counts, not `format`
            ({"type": "audio_url", "audio_url": {"url": "b.wav"}}, {"audios": [files["b.wav"]]}),
            (video(data_url(loud, "image/png")), {"videos": [loud]}),
            (video("loud.mp4", sound=False), {"videos": [loud], "sound": False}),
            (video(f"file://{still}"), {"videos": [still]}),
            (image("b.png"), {"images": [files["b.png"]]}),
        ):
            assert said(ask(user(part, "what?"))) == alone(engine, "what?", **expected).text

    def test_several_media_and_turns(self, engine, ask, files):
        session = ChatSession(engine, SHORT)
        first = session.say("what is\nit?", media=[files["b.wav"], files["a.png"]])
        session.say("and now?", images=[files["b.png"]])
        messages = [
            user("what is", sound(files["b.wav"]), image("a.png"), "it?"),
            {"role": "assistant", "content": [text(first.text)], "refusal": None, "audio": None, "tool_calls": None},
            user("and now?", image("b.png")),
        ]
        assert said(ask(*messages)) == session.turns[-1].answer

    def test_a_medium_alone_and_questions_in_a_row(self, engine, ask, files):
        assert said(ask(user(image("a.png")))) == alone(engine, images=[files["a.png"]]).text
        one = ask(user("one"), user("two"))
        assert said(one) != said(ask(user("two")))

    def test_streaming(self, engine, ask, files):
        message = user("what is it?", image("a.png"))
        chunks = list(ask(message, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert sum(map(bool, pieces)) > 3
        assert "".join(pieces) == alone(engine, "what is it?", images=[files["a.png"]]).text
        assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
        assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in chunks)
        *_, last = ask(message, stream=True, stream_options={"include_usage": True})
        assert last.choices == [] and last.usage.completion_tokens == 10

    def test_as_it_travels(self, served):
        body = {"model": "tiny", "messages": [user("what?")], "max_tokens": 3, "stream": True}
        with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert all(line.startswith("data: {") for line in lines[:-1]) and lines[-1] == "data: [DONE]"
        assert '"finish_reason":null' in lines[0] and '"usage"' not in "".join(lines)

    def test_markup_is_text(self, engine, ask):
        words = "<script>alert(1)</script> <|im_start|> ### \x00 \u202e \U0001f600"
        assert said(ask(user(words))) == alone(engine, words).text

    def test_models_and_health(self, served):
        models = served.client().models
        assert [model.id for model in models.list()] == ["tiny"]
        assert models.retrieve("tiny").modalities == ["image", "video", "audio"]
        with pytest.raises(openai.NotFoundError, match="no model is called 'other/one'"):
            models.retrieve("other/one")
        until(lambda: not served.endpoint.queue.occupied)
        assert http("GET", f"{served.url}/health").json() == {"status": "ok", "answering": 0, "waiting": 0}
        for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
            response = http(method, served.url + path)
            assert (response.status_code, response.json()["error"]["code"]) == (status, "unknown_url")


class TestSettings:
    @pytest.mark.parametrize(
        "settings",
        [
            {"temperature": 2.0, "top_p": 0.9, "seed": 3},
            {"temperature": 1.5, "top_k": 5, "seed": 4},
            {"repetition_penalty": 0.1},
            {"num_beams": 3},
        ],
    )
    def test_reach_the_model(self, engine, ask, settings):
        ours = ("top_k", "repetition_penalty", "num_beams")
        extra = {name: value for name, value in settings.items() if name in ours}
        usual = {name: value for name, value in settings.items() if name not in ours}
        expected = alone(engine, "what?", settings=GenerationSettings(max_new_tokens=10, **settings))
        completion = ask(user("what?"), extra_body=extra, **usual)
        assert said(completion) == expected.text != alone(engine, "what?").text
        assert completion.chatbridge["seed"] == settings.get("seed")

    def test_length(self, ask):
        for name in ("max_tokens", "max_completion_tokens"):
            assert ask(user("what?"), **({"max_tokens": None} | {name: 4})).usage.completion_tokens == 4

    def test_a_drawn_seed_is_told_and_repeats_the_answer(self, ask):
        drawn = ask(user("what?"), temperature=2)
        assert said(ask(user("what?"), temperature=2, seed=drawn.chatbridge["seed"])) == said(drawn)

    def test_stop_texts(self, engine, ask):
        whole = alone(engine, "what?").text
        for start in range(1, len(whole) - 3, 3):
            stop = whole[start : start + 3]
            for given in (stop, ["never", stop]):
                completion = ask(user("what?"), stop=given)
                assert said(completion) == whole.split(stop)[0]
                assert completion.choices[0].finish_reason == "stop"
            chunks = list(ask(user("what?"), stop=stop, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.split(stop)[0]
            assert chunks[-1].choices[0].finish_reason == "stop"
        assert said(ask(user("what?"), stop=["never"])) == whole

    def test_nothing_is_made_behind_a_stop_text(self, engine, ask):
        stop = alone(engine, "tell me more").text[2:5]
        assert ask(user("tell me more"), stop=stop, max_tokens=100).usage.completion_tokens < 10

    def test_what_says_what_holds_anyway_is_accepted(self, ask):
        ask(user("what?"), n=1, presence_penalty=0.0, logprobs=False, tools=[], metadata={"a": "b"}, store=False)
        ask(user("what?"), response_format={"type": "text"}, top_p=1.0, extra_body={"top_k": 0}, user="me")


class TestSystemMessages:
    def test_are_refused_unless_empty(self, ask):
        with pytest.raises(openai.BadRequestError, match="--system-messages prepend"):
            ask({"role": "system", "content": "Be brief."}, user("what?"))
        assert said(ask({"role": "system", "content": ""}, user("what?"))) == said(ask(user("what?")))

    @pytest.mark.parametrize("mode", ["ignore", "prepend"])
    def test_other_ways(self, engine, mode):
        served = Served(engine, system=mode)
        create = served.client().chat.completions.create
        messages = [{"role": "developer", "content": "Be brief."}, user("what?")]
        answer = said(create(model="tiny", messages=messages, max_tokens=10))
        assert answer == alone(engine, "Be brief.\nwhat?" if mode == "prepend" else "what?").text
        if mode == "prepend":
            with pytest.raises(openai.BadRequestError, match="before the first question"):
                create(model="tiny", messages=[*messages, messages[0], user("and?")])
        served.close()


class TestReuse:
    def test_a_turn_costs_its_own_positions_only(self, engine, served, ask, files, monkeypatch):
        read = []
        step = engine.model.llm.step
        monkeypatch.setattr(engine.model.llm, "step", lambda *a: read.append(len(served_positions(a))) or step(*a))
        talk = [user("what have we here?", image(data_url(files["a.png"])), sound(files["b.wav"]))]
        first = ask(*talk)
        talk += [assistant(said(first)), user("and why?")]
        read.clear()
        second = ask(*talk)
        cached = second.usage.prompt_tokens_details.cached_tokens
        assert cached >= first.usage.prompt_tokens
        assert read[0] == second.usage.prompt_tokens - cached
        session = ChatSession(engine, SHORT, reuse=False)
        session.say("what have we here?", images=[files["a.png"]], audios=[files["b.wav"]])
        assert said(second) == session.say("and why?").text

    def test_what_another_showed_is_never_seen(self, engine, ask, files):
        for name in ("a.png", "b.png", "a.png"):
            completion = ask(user("the same words", image(data_url(files[name]))))
            assert said(completion) == alone(engine, "the same words", images=[files[name]]).text

    def test_separate_users_and_keys(self, engine):
        served = Served(engine, separate=True, keys=("one", "two"))

        def cached(key, user_name):
            create = served.client(key).chat.completions.create
            extra = {} if user_name is None else {"user": user_name}
            done = create(model="tiny", messages=[user("a question of many words")], max_tokens=3, **extra)
            return done.usage.prompt_tokens_details.cached_tokens

        owners = [("one", None), ("one", "a"), ("one", "b"), ("two", "a")]
        assert [cached(*owner) for owner in owners] == [0, 0, 0, 0]
        assert all(cached(*owner) > 5 for owner in owners)
        served.close()

    def test_without(self, engine):
        served = Served(engine, cache_positions=0)
        create = served.client().chat.completions.create
        for _ in range(2):
            done = create(model="tiny", messages=[user("what?")], max_tokens=3)
            assert done.usage.prompt_tokens_details.cached_tokens == 0
        served.close()

    def test_only_so_much_is_kept(self, engine):
        sessions = SessionPool(lambda: ChatSession(engine), max_positions=30)

        def use(*positions, owner=""):
            with sessions.acquire(list(positions), owner) as kept:
                before = list(kept.positions)
                kept.positions = list(positions)
            return before

        assert use(*range(10)) == []
        assert use(*range(12)) == list(range(10))  # goes on
        assert use(*range(100, 110)) == []
        assert use(0, 50, 51, 200) == []  # too little in common to take the other's place
        assert use(*range(6), 300, 301, owner="other") == []  # and with that, the oldest went
        assert use(*range(12)) == []
        with pytest.raises(ZeroDivisionError), sessions.acquire(list(range(12))):
            raise ZeroDivisionError
        assert use(*range(12)) == []  # one that failed is not used again

    def test_old_turns_that_do_not_fit_are_told(self, engine, ask):
        talk = [message for i in range(300) for message in (user(f"question {i}"), assistant("no " * 10))]
        completion = ask(*talk, user("and now?"))
        assert completion.usage.prompt_tokens <= 201
        session = ChatSession(engine, SHORT, reuse=False)
        turns = 300 - completion.chatbridge["dropped_turns"]
        assert 1 < turns < 20
        recent = ask(*talk[-2 * turns :], user("and now?"))
        assert recent.chatbridge["dropped_turns"] == 0 and said(recent) == said(completion)
        assert session.turns == []


def served_positions(arguments):
    """Positions of one call of ``CausalLM.step``."""
    _, ids, embeds = (*arguments, None, None)[:3]
    return (ids if ids is not None else embeds)[0]


def test_eight_clients_at_once(engine, files):
    """Each has a conversation of its own, streamed and whole, and hears what it would hear alone."""
    served = Served(engine, parallel=3, queue=8, folder=files["a.png"].parent)
    shows = [["a.png"], ["b.png"], ["a.wav"], ["b.wav"], ["loud.mp4"], ["a.png", "a.wav"], ["b.png", "a.png"], []]
    parts = {"png": image, "mp4": video, "wav": lambda name: {"type": "audio_url", "audio_url": {"url": name}}}
    expected, heard = {}, {}
    for number, names in enumerate(shows):
        session = ChatSession(engine, SHORT, reuse=False)
        expected[number] = [
            session.say(f"question {number}", media=[files[name] for name in names]).text,
            session.say("and then?").text,
            session.say("why?").text,
        ]

    def talk(number):
        client, answers = served.client(), []
        talked = [user(f"question {number}", *(parts[name[-3:]](name) for name in shows[number]))]
        for question in ("and then?", "why?", None):
            stream = client.chat.completions.create(model="tiny", messages=talked, max_tokens=10, stream=True)
            answers.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
            talked += [assistant(answers[-1]), user(question or "")]
        heard[number] = answers

    for _ in range(2):
        threads = [threading.Thread(target=talk, args=(number,)) for number in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert heard == expected
        heard.clear()
    assert len({answers[0] for answers in expected.values()}) == 8
    served.close()
    assert served.endpoint.queue.occupied == 0


def test_stop_texts_however_the_answer_is_cut_into_pieces():
    for seed in range(200):
        rng = random.Random(seed)
        answer = "".join(rng.choice("ab#") for _ in range(30))
        texts = ["".join(rng.choice("ab#") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        ends = [place for place in map(answer.find, texts) if place >= 0]
        stops, shown, rest = StopTextFilter(texts), "", answer
        while rest and not stops.found:
            size = rng.randint(1, 4)
            shown, rest = shown + stops.add(rest[:size]), rest[size:]
            assert answer.startswith(shown)
        shown += stops.end()
        # A longer text that begins earlier may be complete later than a shorter one: the first complete one counts.
        if not ends:
            assert (shown, stops.found) == (answer, False)
        else:
            assert stops.found and not any(text in shown for text in texts)
