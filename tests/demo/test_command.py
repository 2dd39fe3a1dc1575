"""``python demo.py`` as a process: eight users at once, its end in the middle of an answer, and what it says when it
cannot begin."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch

from benchmarks import demo_load
from chatbridge.demo import command
from chatbridge.demo.handlers import Handlers
from chatbridge.inference import Engine
from tests import tiny
from tests.demo.tools import Browser, slowly
from tests.inference.tools import write_config
from tests.patience import until
from tests.processes import FORK, free_port


@contextmanager
def server(folder: Path, pause: float = 0.0, late: float = 0.0) -> Iterator[SimpleNamespace]:
    """The command in a process of its own, on a model that takes its time with every token, and its `late` last words.

    Gives its address, process, log and the folder of its temporary files.
    """
    config, port, log, temporary = write_config(folder), free_port(), folder / "log.txt", folder / "temporary"
    temporary.mkdir()
    arguments = ["--cfg-path", str(config), "--gpu-id", "-1", "--port", str(port)]
    process = FORK.Process(target=_serve, args=(arguments, log, temporary, pause, late))
    process.start()
    try:
        until(lambda: log.exists() and "ChatBridge is at" in log.read_text(), 60)
        address = f"http://127.0.0.1:{port}/"
        yield SimpleNamespace(address=address, process=process, log=log, temporary=temporary, config=config)
    finally:
        process.kill()
        process.join()


def _serve(arguments: list[str], log: Path, temporary: Path, pause: float, late: float) -> None:
    with log.open("w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        tempfile.tempdir = str(temporary)
        torch.set_num_threads(1)
        load, last_words, status = Engine.load, Handlers._finish, 1

        def load_slow(*given, **more):
            engine = load(*given, **more)
            if pause:
                slowly(engine, pause).__enter__()
            return engine

        Engine.load = load_slow
        Handlers._finish = lambda *given: time.sleep(late) or last_words(*given)
        try:
            status = command.main(arguments)
        except BaseException:
            traceback.print_exc()
        out.flush()
        os._exit(status)


def end(running: SimpleNamespace) -> None:
    """It has ended well and left nothing behind."""
    running.process.join(30)
    assert running.process.exitcode == 0 and "Traceback" not in running.log.read_text(), running.log.read_text()
    assert list(running.temporary.iterdir()) == []
    with pytest.raises(httpx.HTTPError):
        httpx.get(running.address)


@pytest.mark.slow
def test_eight_users_at_once(tmp_path):
    with server(tmp_path) as running:
        scripts = demo_load.write_scripts(Engine.load(running.config, device="cpu"), tmp_path, 8)
        load = demo_load.run(running.address, running.process.pid, scripts, 5)
        assert load.errors == [] and load.wrong == [] and load.answers >= 8 * 3
        assert len({script.answers for script in scripts}) == 8  # another's answer would be a wrong one
        assert load.growth < 150 * demo_load.MIB
        os.kill(running.process.pid, signal.SIGTERM)
        end(running)


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_the_end_of_the_server_in_an_answer(tmp_path, late):
    """Also when the conversation has been put away before its last words are asked for."""
    with server(tmp_path, pause=0.1, late=late) as running:
        browser = Browser(running, "late").open()
        browser.ask("what is it?")
        with browser.messages() as messages:
            seen = [next(message for message in messages if message["msg"] == "process_generating")]
            os.kill(running.process.pid, signal.SIGTERM)
            for message in messages:
                seen.append(message)
                if message["msg"] == "process_completed":
                    break
        assert "The server is being shut down" in str(seen[1:])
        end(running)


def test_a_command_that_cannot_serve_says_why(tmp_path, capsys, monkeypatch):
    for folder in ("eval_configs", "model_configs"):  # where nothing was trained
        shutil.copytree(tiny.ROOT / folder, tmp_path / folder)
    assert command.main(["--cfg-path", str(tmp_path / "eval_configs" / "quickstart.yaml"), "--gpu-id", "-1"]) == 1
    assert "hint: `make quickstart` makes this model" in capsys.readouterr().err
    config = str(write_config(tmp_path))
    assert command.main(["--cfg-path", config, "--queue", "0"]) == 1
    assert "take 1 up" in capsys.readouterr().err
    assert command.main(["--cfg-path", config, "--max-upload-mb", "0"]) == 1
    assert "max_bytes" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert command.main(["--cfg-path", config, "--gpu-id", "-1", "--port", port]) == 1
    told = capsys.readouterr().err
    assert re.search(rf"^error: 127.0.0.1:{port}: address already in use; .*--port.*\n$", told, re.M)
    for wrong in (["--port", "70000"], ["--host", "192.0.2.1"], ["--root-path", "chat"], ["--allowed-host", "a:80"]):
        assert command.main(["--cfg-path", config, "--gpu-id", "-1", *wrong]) == 1
        told = capsys.readouterr().err
        assert f"error: {wrong[0]} {wrong[1]}: " in told and "Traceback" not in told
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/there")
    assert command.parse_args(["--cfg-path", config]).root_path == "/there"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert command.main(["--cfg-path", config, "--gpu-id", "3"]) == 1
    assert "there are 1 GPUs" in capsys.readouterr().err
