"""``python -m chatbridge.serve`` as a process: how it starts, and how it stops in the middle of an answer."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import time
import traceback

import httpx
import pytest
import torch
from openai import OpenAI

from chatbridge import serve
from chatbridge.models.llm import CausalLM
from chatbridge.serving import server
from tests.inference.tools import write_config
from tests.patience import PATIENCE, until
from tests.processes import FORK
from tests.serving.tools import user

LONG = {"model": "run", "messages": [user("tell me more")], "stream": True}


class Process:
    """The command, forked from the test, with tokens that take `seconds` each."""

    def __init__(self, log, arguments, seconds=0.02):
        self.log = log
        self.process = FORK.Process(target=self.main, args=(arguments, seconds))
        self.process.start()
        until(lambda: "serving 'run' at" in self.text() or not self.process.is_alive())
        assert self.process.is_alive(), self.text()
        self.url = re.search(r"http://\S+:\d+", self.text())[0]

    def main(self, arguments, seconds):
        with self.log.open("w", buffering=1) as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            sys.stdout = sys.stderr = out
            torch.set_num_threads(1)
            server.SHUTDOWN_SECONDS = 1.0
            step = CausalLM.step
            CausalLM.step = lambda *given, **named: time.sleep(seconds) or step(*given, **named)
            status = 99
            try:
                status = serve.main(arguments)
            except BaseException:
                traceback.print_exc()
            os._exit(status)

    def client(self, key="none"):
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def send(self, number):
        os.kill(self.process.pid, number)

    def status(self):
        self.process.join(PATIENCE)
        return self.process.exitcode

    def text(self):
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("model"), max_txt_len=200)


@pytest.fixture
def start(config, tmp_path):
    started = []

    def start(*arguments, **more):
        usual = ["--cfg-path", str(config), "--device", "cpu", "--port", "0"]
        started.append(Process(tmp_path / "log.txt", [*usual, *arguments], **more))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_an_answer_ends_it(start, number):
    process = start("--grace", "0.2")
    chunks = []
    for chunk in process.client().chat.completions.create(max_tokens=240, **LONG):
        chunks.append(chunk)
        if len(chunks) == 4:
            process.send(number)
    assert chunks[-1].choices[0].finish_reason == "length" and 4 < len(chunks) < 150
    assert process.status() == 0
    assert "Traceback" not in process.text() and "ERROR" not in process.text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{process.url}/health")


def test_a_whole_answer_is_given_as_far_as_it_went(start):
    process = start("--grace", "0.2")
    asked = {**LONG, "stream": False, "max_tokens": 240, "timeout": 30}
    timer = FORK.Process(target=lambda: (time.sleep(0.5), process.send(signal.SIGTERM)))
    timer.start()
    answer = process.client().chat.completions.create(**asked)
    timer.join()
    assert answer.choices[0].finish_reason == "length" and 0 < answer.usage.completion_tokens < 240
    assert process.status() == 0


def test_an_answer_that_is_nearly_done_is_finished(start):
    process = start("--grace", "20")
    stream = process.client().chat.completions.create(max_tokens=30, stream_options={"include_usage": True}, **LONG)
    next(stream)
    process.send(signal.SIGTERM)
    *_, last = stream
    assert last.usage.completion_tokens == 30
    assert process.status() == 0


def test_a_second_signal_waits_for_nothing(start):
    process = start("--grace", "1000")
    stream = process.client().chat.completions.create(max_tokens=240, **LONG)
    next(stream)
    process.send(signal.SIGTERM)
    time.sleep(0.2)
    process.send(signal.SIGTERM)
    *_, last = stream
    assert last.choices[0].finish_reason == "length" and process.status() == 0


def test_what_cannot_be_interrupted_does_not_keep_it(start):
    process = start("--grace", "0", seconds=1000)
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{process.url}/v1/chat/completions", json=LONG, timeout=0.5)
    process.send(signal.SIGTERM)
    assert process.status() == 0


def test_keys_names_and_a_quiet_log(start, monkeypatch):
    monkeypatch.setenv("SOME_KEYS", "key-of-one, key-of-two")
    process = start("--api-key-env", "SOME_KEYS", "--model-name", "run", "--queue", "3", seconds=0)
    for key in ("key-of-one", "key-of-two"):
        assert process.client(key).chat.completions.create(**{**LONG, "stream": False, "max_tokens": 5}).choices
    models = f"{process.url}/v1/models"
    assert httpx.get(models, headers={"Authorization": "Bearer wrong-key"}, timeout=PATIENCE).status_code == 401
    assert httpx.get(f"{models}?api_key=key-of-one", timeout=PATIENCE).status_code == 401
    process.send(signal.SIGTERM)
    assert process.status() == 0
    assert "5 tokens" in process.text()
    for secret in ("key-of", "wrong-key", "tell me more"):
        assert secret not in process.text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-key-env", "NOT_SET"], "no NOT_SET"),
        (["--media-folder", "/none"], "media folder /none is no folder"),
        (["--parallel", "0"], "parallel is 0"),
        (["--max-media", "0"], "max_count is 0"),
        (["--checkpoint", "/none"], "none"),
        (["--max-beams", "0"], "max_beams is 0"),
        (["--allowed-host", "http://x.org"], "--allowed-host http://x.org: give a name"),
        (["--root-path", "chat"], "--root-path chat: give a path"),
        (["--trusted-proxy", "proxy"], "--trusted-proxy proxy: give an address"),
    ],
)
def test_problems_before_it_starts(config, capsys, arguments, message):
    assert serve.main(["--cfg-path", str(config), *arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told and "Traceback" not in told


def test_a_port_that_is_taken(config, capfd):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert serve.main(["--cfg-path", str(config), "--device", "cpu", "--port", str(port)]) == 1
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told == [f"error: 127.0.0.1:{port}: address already in use; take another one with --port (0: any free one)"]


def test_another_name_and_a_proxys_path(start):
    process = start("--allowed-host", "chat.example.org", "--root-path", "/chat", "--model-name", "run", seconds=0)
    for host, path, status in (
        ("chat.example.org", "/chat/v1/models", 200),
        ("localhost", "/v1/models", 200),
        ("evil.example", "/health", 400),
    ):
        assert httpx.get(process.url + path, headers={"Host": host}, timeout=60).status_code == status
    process.send(signal.SIGTERM)
    assert process.status() == 0


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [([], False), (["--host", "::1"], False), (["--host", "localhost"], False), (["--host", "0.0.0.0"], True),
     (["--host", "somewhere"], True), (["--host", "0.0.0.0", "--api-key-env", "SOME_KEY"], False)],
)  # fmt: skip
def test_a_warning_for_doors_without_a_lock(config, monkeypatch, arguments, warned):
    monkeypatch.setenv("SOME_KEY", "x")
    served = []
    monkeypatch.setattr(server.Server, "run_until_stopped", lambda self: served.append(self.config) or 0)
    messages = []
    monkeypatch.setattr(logging.getLogger("chatbridge"), "warning", lambda text, *_: messages.append(text))
    assert serve.main(["--cfg-path", str(config), "--device", "cpu", *arguments]) == 0
    assert served[0].host == (arguments[1] if arguments else "127.0.0.1")
    assert any("everybody who can reach" in text for text in messages) == warned
