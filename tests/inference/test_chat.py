"""``python -m chatbridge.chat``: lines in, answers out."""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chatbridge import chat
from chatbridge.chat import Terminal
from chatbridge.inference import ChatSession
from tests.inference.tools import SHORT, write_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def terminal(engine):
    return Terminal(ChatSession(engine, SHORT), io.StringIO(), io.StringIO())


def run(terminal, *lines):
    """Output and other messages of some lines."""
    for stream in (terminal.output, terminal.errors):
        stream.seek(0)
        stream.truncate()
    for line in lines:
        terminal.line(line)
    return terminal.output.getvalue(), terminal.errors.getvalue()


def test_a_conversation(engine, terminal, files):
    said, _ = run(terminal, f"/image {files['a.png']}", f"/video '{files['loud.mp4']}'", "", "what is it?")
    session = ChatSession(engine, SHORT)
    expected = session.say("what is it?", images=[files["a.png"]], videos=[files["loud.mp4"]])
    assert said == expected.text + "\n"
    assert run(terminal, "and then?")[0] == session.say("and then?").text + "\n"
    assert run(terminal, "/edit and now?")[0] == session.edit(1, "and now?").text + "\n"
    assert run(terminal, "/edit 1 why?")[0] == session.edit(0, "why?").text + "\n"
    assert run(terminal, "//regenerate")[0] == session.say("/regenerate").text + "\n"
    assert not terminal.failed and terminal.pending == []


def test_muting(terminal, files):
    heard = run(terminal, f"/audio {files['a.wav']}", f"/show {files['b.png']}", "what?")[0]
    assert run(terminal, "/mute")[1] == "1. audio a.wav\n2. image b.png\n"
    assert run(terminal, "/mute 1")[1] == "1. audio a.wav (muted)\n2. image b.png\n"
    assert run(terminal, "/regenerate")[0] != heard
    run(terminal, "/mute audio")
    assert run(terminal, "/regenerate")[0] == heard


def test_saving_and_loading(engine, terminal, files, tmp_path):
    run(terminal, f"/image {files['a.png']}", "what?", f"/save {tmp_path}/talk.json")
    other = Terminal(ChatSession(engine, SHORT), io.StringIO(), io.StringIO())
    _, told = run(other, f"/load {tmp_path}/talk.json")
    assert told == f"> [image a.png] what?\n{terminal.session.turns[0].answer}\n"
    assert run(other, "and?") == run(terminal, "and?")
    run(other, "/clear")
    assert other.session.turns == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image none.png", "none.png: does not exist"),
        ("/image", "file name is missing"),
        ("/imgae x", "no command is called /imgae; /help"),
        ("/mute 3", "nothing is shown as '2'"),
        ("/mute smell", "nothing is shown as 'smell'"),
        ("/regenerate", "conversation has 0"),
        ("/edit", "needs the new question"),
        ("/edit 7 what?", "no turn 6"),
        ("/load none.json", "none.json: does not exist"),
        ("/save /none/there.json", "No such file"),
    ],
)
def test_mistakes_are_told(terminal, line, message):
    said, told = run(terminal, line)
    assert said == "" and told.startswith("error: ") and message in told
    assert terminal.failed and run(terminal, "go on")[0]


def test_a_broken_file_is_not_shown_again(terminal, files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(files["a.png"].read_bytes()[:300])
    assert "broken.png" in run(terminal, f"/image {broken}", "what?")[1].splitlines()[-1]
    said, told = run(terminal, "what?")
    assert said.strip() and "broken.png" not in told


def test_help_names_every_command(terminal):
    told = run(terminal, "/help")[1]
    for name in terminal.commands:
        assert f"/{name} " in told
    assert all(line.count(" ") > 1 or line in ("/quit leave",) for line in told.splitlines())


class InterruptedOutput(io.StringIO):
    """Presses Ctrl-C while the third piece is written."""

    count = 0

    def write(self, text):
        self.count += 1
        if self.count == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def test_ctrl_c_ends_the_answer_and_not_the_program(engine):
    terminal = Terminal(ChatSession(engine, SHORT), InterruptedOutput(), io.StringIO())
    before = signal.getsignal(signal.SIGINT)
    terminal.line("what?")
    assert terminal.errors.getvalue() == "(stopped)\n"
    turn = terminal.session.turns[0]
    assert turn.finish == "cancelled" and turn.answer == terminal.output.getvalue().strip()
    assert signal.getsignal(signal.SIGINT) is before
    terminal.line("/regenerate")
    assert len(terminal.session.turns[0].answer) > len(turn.answer)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the whole program on lines: (exit status, output, other messages)."""
    config = write_config(tmp_path)

    def run(lines, *arguments, typed=False, stdin=None, stdout=None):
        stdin = stdin or io.StringIO("".join(line + "\n" for line in lines))
        if stdout is not None:
            monkeypatch.setattr("sys.stdout", stdout)
        if typed:
            stdin.isatty = lambda: True
            monkeypatch.setattr(builtins, "input", lambda _="": stdin.readline().rstrip("\n") or leave())
        monkeypatch.setattr("sys.stdin", stdin)
        capsys.readouterr()
        try:
            status = chat.main(["--cfg-path", str(config), "--device", "cpu", "--max-new-tokens", "8", *arguments])
        finally:
            monkeypatch.undo()
        return (status, *capsys.readouterr())

    return run


def leave():
    raise EOFError


def test_through_a_pipe(command, files):
    lines = [f"/image {files['a.png']}", "what?", "and?"]
    status, said, told = command(lines)
    assert status == 0 and "error" not in told
    assert len(said.splitlines()) >= 2
    status, again, told = command([*lines, "/image none.png", "/quit", "never asked"])
    assert (status, again) == (1, said) and "none.png: does not exist" in told
    sampled = ["--temperature", "2", "--top-p", "0.9", "--seed", "3"]
    assert command(lines, *sampled)[1] == command(lines, *sampled)[1] != said


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_bytes_that_are_no_text(command, files, tmp_path, monkeypatch, encoding):
    """A question in another encoding, a file's name in one, half an emoji; answers that the terminal cannot show."""
    picture = tmp_path / "caf\udce9.png"
    picture.write_bytes(files["a.png"].read_bytes())
    lines = [b"caf\xe9?", b"/image " + os.fsencode(picture), b"\xed\xa0\xbd what?", b"/edit \xff why?",
             b"/save " + os.fsencode(tmp_path / "talk.json")]  # fmt: skip
    stdin = io.TextIOWrapper(io.BytesIO(b"\n".join(lines)), encoding=encoding)
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    status, _, told = command([], stdin=stdin, stdout=stdout)
    assert "Traceback" not in told and (status == 0 or encoding == "latin-1"), told  # there the name is another one
    stdout.flush()
    assert stdout.buffer.getvalue().count(b"\n") == 3
    said = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["turns"]
    assert [turn["text"] for turn in said] == (
        ["caf\ufffd?", "\ufffd why?"] if encoding != "latin-1" else ["café?", "ÿ why?"]
    )


@pytest.mark.slow
def test_the_program_survives_a_byte_of_another_encoding(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "chatbridge.chat", "--cfg-path", str(write_config(tmp_path)), "--device", "cpu",
         "--max-new-tokens", "2"],
        input=b"what is it?\ncaf\xe9?\nwhat?\n", capture_output=True, cwd=ROOT, timeout=300,
        env=os.environ | {"LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.stdout.count(b"\n") >= 3


def test_typed(command):
    status, said, told = command(["what?", "/imgae", "/quit"], typed=True)
    assert status == 0 and said and "This model knows image, video, audio. /help" in told


def test_problems_before_it_starts(command, tmp_path, capsys):
    assert command(["what?"], "--temperature", "-1")[0] == 1
    status, said, told = command(["what?"], "--checkpoint", str(tmp_path / "none"))
    assert (status, said) == (1, "") and "none" in told and "Traceback" not in told
    missing = tmp_path / "quickstart.yaml"
    assert chat.main(["--cfg-path", str(missing)]) == 1
    assert "make quickstart" in capsys.readouterr().err
