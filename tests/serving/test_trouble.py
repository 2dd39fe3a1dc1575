"""What may go wrong at the HTTP endpoint: bad requests, full queues, vanishing clients, failures of ours."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack

import openai
import pytest

from chatbridge.inference import ChatSession, Engine
from chatbridge.serving import ServingOptions
from chatbridge.serving.errors import ApiError
from chatbridge.serving.messages import RequestParser
from chatbridge.serving.protocol import read_request
from chatbridge.web import connections
from tests.inference.tools import SHORT
from tests.patience import until
from tests.serving.tools import ASKED, Served, assistant, http, image, text, user

LONG = ASKED | {"messages": [user("tell me more")], "max_tokens": 200}
"""The tiny model's answer to this never ends by itself."""
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def served(engine):
    served = Served(engine, max_body=400_000, parallel=1, queue=2)
    yield served
    served.close()


class Slow:
    """An engine whose tokens take their time, and are counted."""

    def __init__(self, engine: Engine, monkeypatch, seconds: float = 0.03):
        self.steps, self.seconds, self.step = 0, seconds, engine.model.llm.step
        monkeypatch.setattr(engine.model.llm, "step", self)

    def __call__(self, *arguments):
        self.steps += 1
        time.sleep(self.seconds)
        return self.step(*arguments)


class TestRequests:
    @pytest.mark.parametrize(
        ("more", "status", "param", "message"),
        [
            ({"model": "gpt-4"}, 404, "model", "no model is called 'gpt-4'; it is 'tiny'"),
            ({"model": None}, 400, "model", "model"),
            ({"messages": []}, 400, "messages", "at least 1"),
            ({"messages": [user("a")] * 4097}, 400, "messages", "at most 4096"),
            ({"messages": [user(*["a"] * 257)]}, 400, "messages[0].content", "at most 256"),
            ({"messages": "what?"}, 400, "messages", "valid array"),
            ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0]", "'tool'"),
            ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "required"),
            ({"messages": [user("")]}, 400, "messages[0]", "nothing is asked and nothing shown"),
            ({"messages": [user("a"), assistant("b")]}, 400, "messages", "last message must be the user's"),
            ({"messages": [assistant("b"), user("a")]}, 400, "messages[0]", "must follow a user's"),
            ({"messages": [user("a"), assistant("b"), assistant("c"), user("d")]}, 400, "messages[2]", "must follow"),
            ({"messages": [user("a", {"type": "smell"})]}, 400, "messages[0].content[1]", "'smell'"),
            ({"messages": [user({"type": "text"})]}, 400, "messages[0].content[0].text", "required"),
            ({"messages": [user(image(7))]}, 400, "messages[0].content[0].image_url.url", "string"),
            (
                {"messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": [{}]}, user("b")]},
                400, "messages[1].tool_calls", "at most 0",
            ),
            ({"temperature": -1}, 400, None, "temperature is -1.0; take"),
            ({"temperature": "hot"}, 400, "temperature", "number"),
            ({"top_p": 0}, 400, None, "top_p is 0.0; take"),
            ({"max_tokens": 0}, 400, None, "max_tokens is 0; take"),
            ({"max_tokens": 10**6}, 400, "messages", "max_tokens (1000000) leaves nothing of the context"),
            ({"seed": 2**70}, 400, None, "seed"),
            ({"num_beams": 0}, 400, None, "num_beams is 0"),
            ({"num_beams": 9}, 400, "num_beams", "more than the 8 that this server allows"),
            ({"num_beams": 10**400}, 400, "num_beams", "num_beams"),
            ({"temperature": 1e-320}, 400, None, "temperature is 1e-320; take"),
            ({"temperature": 1e300}, 400, None, "temperature is 1e+300; take"),
            ({"temperature": float("nan")}, 400, None, "temperature is nan; take"),
            ({"temperature": float("inf")}, 400, None, "temperature is inf; take"),
            ({"temperature": 10**400}, 400, "temperature", "temperature"),
            ({"temperature": 1.0, "top_p": 1e-320}, 400, None, "top_p is 1e-320; take"),
            ({"temperature": 1.0, "repetition_penalty": 1e-320}, 400, None, "repetition_penalty is 1e-320; take"),
            ({"repetition_penalty": 1e300}, 400, None, "repetition_penalty is 1e+300; take"),
            ({"top_k": 10**30}, 400, None, "top_k is far too large; take"),
            ({"max_tokens": 10**400}, 400, None, "max_tokens is far too large; take"),
            ({"max_tokens": 2.5}, 400, "max_tokens", "integer"),
            ({"seed": -(10**400)}, 400, None, "seed is far too small; take"),
            ({"stop": [""]}, 400, "stop", "none of them empty"),
            ({"stop": ["a"] * 17}, 400, "stop", "up to 16"),
            ({"stop": "a" * 1001}, 400, "stop", "of 1000 characters"),
            ({"user": "a" * 1001}, 400, "user", "1000"),
            ({"logit_bias": {"1": 100}}, 400, None, "logit_bias is not supported"),
            ({"presence_penalty": 10**400}, 400, None, "presence_penalty is not supported"),
            ({"n": 10**400}, 400, None, "n is not supported"),
            ({"n": 2}, 400, None, "n is not supported"),
            ({"tools": [{"type": "function"}]}, 400, None, "tools is not supported"),
            ({"response_format": {"type": "json_object"}}, 400, None, "response_format is not supported"),
            ({"temprature": 1}, 400, "temprature", "is no parameter of this endpoint"),
            ({"messages": [user("word " * 300)]}, 400, "messages", "positions"),
        ],
    )  # fmt: skip
    def test_that_are_wrong(self, served, more, status, param, message):
        found, error = served.post(ASKED | more)
        assert (found, error["param"], error["type"]) == (status, param, "invalid_request_error")
        assert message in error["message"]

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"{", b"[]", b"\xff\xfe", b"7", b'{"model": ' + b"[" * 20_000, b'{"messages":[{"role":"user"', b"NaN",
            b"null", b'{"model": "\xe9"}', b'{"model": "tiny", "x": "\\ud83d"}', b'{"top_k": 1' + b"0" * 5000 + b"}",
            b'{"model": ' + b'{"a":' * 20_000, "{}".encode("utf-16"), b"\0" * 100, b'{"model": "tiny"} {}',
        ],
    )  # fmt: skip
    def test_that_are_no_json_object(self, served, body):
        status, error = served.post(body)
        assert (status, error["code"]) == (400, "invalid_request")

    def test_of_more_values_than_are_looked_at(self):
        with pytest.raises(ApiError, match="more than 1,000,000 values"):
            read_request(b'{"metadata": [' + b"[]," * 1_000_001)

    def test_of_another_content_type(self, served):
        status, error = served.post(ASKED, headers={"Content-Type": "text/plain"})
        assert status == 415 and "application/json" in error["message"]

    def test_a_text_that_is_far_too_long(self, engine):
        served = Served(engine)
        with pytest.raises(openai.BadRequestError, match="10,000,000 characters cannot fit"):
            served.client().chat.completions.create(model="tiny", messages=[user("x" * 10_000_000)])
        talk = [user("old " * 2_000_000), assistant("yes"), user("what?")]
        answer = served.client().chat.completions.create(model="tiny", messages=talk, max_tokens=10)
        assert answer.chatbridge["dropped_turns"] == 1
        assert answer.choices[0].message.content == ChatSession(engine, SHORT).say("what?").text
        served.close()

    def test_that_are_too_large(self, served):
        for given in (ASKED | {"messages": [user("x" * 500_000)]}, ASKED | {"messages": [user("x" * 20_000_000)]}):
            status, error = served.post(given)
            assert (status, error["code"]) == (413, "request_too_large") and "0.4 MiB" in error["message"]

    def test_that_never_say_how_long_they_are(self, served):
        def endless():
            yield b'{"model": "'
            for _ in range(1000):
                yield b"x" * 1000

        response = http(
            "POST", f"{served.url}/v1/chat/completions", content=endless(), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 413

    def test_that_do_not_arrive(self, served, monkeypatch):
        monkeypatch.setattr(connections, "BODY_SECONDS", 0.2)
        with socket.create_connection(("127.0.0.1", served.server.port)) as connection:
            connection.sendall(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
            said = connection.recv(1000)
        assert b" 408 " in said and json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"

    def test_half_of_them_takes_nobodys_place(self, served):
        """Those who answer first are those who have asked."""
        with ExitStack() as stack:
            for _ in range(12):  # of 3 places
                one = stack.enter_context(socket.create_connection(("127.0.0.1", served.server.port)))
                one.sendall(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
            assert served.client().chat.completions.create(**ASKED).choices
            assert http("GET", f"{served.url}/health").json() == {"status": "ok", "answering": 0, "waiting": 0}

    def test_for_another_host(self, served):
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "0.0.0.0"):
            for path in ("/health", "/v1/models", "/nowhere"):
                answer = http("GET", served.url + path, headers={"Host": host})
                assert answer.status_code == 400 and answer.json()["error"]["code"] == "unknown_host"
                assert "--allowed-host" in answer.json()["error"]["message"]
            assert served.post(ASKED, headers={"Host": host})[0] == 400
        assert http("GET", f"{served.url}/health", headers={"Host": "localhost:9"}).status_code == 200

    def test_from_pages_of_others_are_not_told_that_they_may_read(self, served):
        asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        for method in ("GET", "POST", "OPTIONS"):
            answer = http(method, f"{served.url}/v1/chat/completions", headers=asked)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert answer.status_code in (405, 415)


class TestKeys:
    def test_one_must_come_along(self, engine, caplog):
        served = Served(engine, keys=("first-key", "second-key"))
        for key in ("first-key", "second-key"):
            assert [model.id for model in served.client(key).models.list()] == ["tiny"]
            served.client(key).chat.completions.create(**ASKED)
        for key in ("wrong", "first-key,second-key", "first-ke", "schlüssel"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            for call in (
                http("GET", f"{served.url}/v1/models", headers=headers),
                http("GET", f"{served.url}/v1/models/tiny", headers=headers),
                http("POST", f"{served.url}/v1/chat/completions", headers=headers, json=ASKED),
            ):
                assert (call.status_code, call.json()["error"]["code"]) == (401, "invalid_api_key")
        assert http("GET", f"{served.url}/v1/models").status_code == 401
        assert http("GET", f"{served.url}/health").status_code == 200
        served.close()
        assert "first-key" not in caplog.text + repr(served.endpoint.options)


class TestManyAndVanishing:
    def test_a_full_queue(self, engine, served, monkeypatch):
        slow = Slow(engine, monkeypatch)
        done = []

        def ask():
            done.append(served.client().chat.completions.create(**LONG | {"max_tokens": 40}).usage.completion_tokens)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: served.endpoint.queue.occupied == 3 and slow.steps)
        assert http("GET", f"{served.url}/health").json() == {"status": "ok", "answering": 1, "waiting": 2}
        with pytest.raises(openai.RateLimitError, match="1 answers are being given and 2 requests wait") as caught:
            served.client().chat.completions.create(**ASKED)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.body["type"] == "rate_limit_error"
        monkeypatch.undo()
        for thread in threads:
            thread.join(30)
        assert done == [40, 40, 40]
        served.client().chat.completions.create(**ASKED)

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_vanishes(self, engine, served, monkeypatch, stream):
        slow = Slow(engine, monkeypatch)
        body = json.dumps(LONG | {"stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", served.server.port)) as connection:
            connection.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: slow.steps > 5)
            if stream:
                assert b"text/event-stream" in connection.recv(10_000)
        until(lambda: not served.endpoint.queue.busy())
        made = slow.steps
        assert made < 100
        time.sleep(10 * slow.seconds)
        assert slow.steps == made
        until(lambda: served.endpoint.queue.occupied == 0)
        monkeypatch.undo()
        answer = served.client().chat.completions.create(
            **ASKED | {"messages": [user("tell me more")], "max_tokens": 10}
        )
        assert answer.choices[0].message.content == ChatSession(engine, SHORT).say("tell me more").text

    def test_one_that_vanishes_while_it_waits(self, engine, served, monkeypatch):
        slow = Slow(engine, monkeypatch)
        first = served.client().chat.completions.create(**LONG | {"max_tokens": 60, "stream": True})
        next(first)
        read = []
        monkeypatch.setattr(served.endpoint.sessions, "acquire", lambda *a: read.append(a))
        with pytest.raises(openai.APITimeoutError):
            served.client().with_options(timeout=0.3).chat.completions.create(**ASKED)
        until(lambda: served.endpoint.queue.occupied == 1)
        slow.seconds = 0
        for _ in first:
            pass
        until(lambda: not served.endpoint.queue.busy())
        assert read == []

    def test_one_that_vanishes_late_interrupts_nobody_else(self, engine, served, monkeypatch):
        """A session goes from request to request; the end of the first must not reach into the second."""
        started, start = [], served.endpoint.queue.start
        monkeypatch.setattr(served.endpoint.queue, "start", lambda one: started.append(one) or start(one))
        Slow(engine, monkeypatch, 0.01)
        asked = LONG | {"messages": [user("tell me something else")], "max_tokens": 20}
        served.client().chat.completions.create(**asked)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        stream = served.client().chat.completions.create(**asked | options)
        next(stream), next(stream)
        started[0].cancel()
        *_, last = stream
        assert last.usage.prompt_tokens_details.cached_tokens > 5
        assert last.usage.completion_tokens == 20

    def test_stopping_a_stream_ends_it(self, engine, served, monkeypatch):
        slow = Slow(engine, monkeypatch)
        stream = served.client().chat.completions.create(**LONG | {"stream": True})
        next(stream), next(stream)
        stream.close()
        until(lambda: not served.endpoint.queue.busy())
        assert slow.steps < 100


class TestOurOwnFailures:
    def test_are_told_without_their_inside(self, engine, served, monkeypatch):
        def fail(*_):
            raise RuntimeError("a secret place: /home/somebody/model.bin")

        for place in ((engine.model.llm, "step"), (engine.prompt_format, "segments"), (RequestParser, "parse")):
            with monkeypatch.context() as patched:
                patched.setattr(*place, fail)
                response = http("POST", f"{served.url}/v1/chat/completions", json=ASKED)
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "internal_error" and "secret" not in response.text
        assert http("POST", f"{served.url}/v1/chat/completions", json=ASKED).status_code == 200

    def test_in_the_middle_of_a_stream(self, engine, served, monkeypatch):
        step, count = engine.model.llm.step, []

        def fail_later(*arguments):
            count.append(1)
            if len(count) > 6:
                raise RuntimeError("a secret place")
            return step(*arguments)

        monkeypatch.setattr(engine.model.llm, "step", fail_later)
        stream = served.client().chat.completions.create(**LONG | {"max_tokens": 20, "stream": True})
        with pytest.raises(openai.APIError, match="the server failed to answer") as caught:
            for _ in stream:
                pass
        assert "secret" not in str(caught.value)
        monkeypatch.undo()
        answer = served.client().chat.completions.create(**ASKED | {"max_tokens": 10})
        assert answer.choices[0].message.content == ChatSession(engine, SHORT).say("what?").text


@pytest.mark.parametrize("wrong", [{"parallel": 0}, {"queue": -1}, {"cache_positions": -1}, {"max_body": 0}])
def test_options_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        ServingOptions(model_name="x", **wrong)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="none is no folder"):
        ServingOptions(model_name="x", folder=tmp_path / "none")


def test_text_parts_only_for_assistants(served):
    wrong = {"role": "assistant", "content": [image("a.png")]}
    status, error = served.post(ASKED | {"messages": [user("a"), wrong, user(text("b"))]})
    assert status == 400 and error["param"] == "messages[1].content[0].type"
