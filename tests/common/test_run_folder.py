"""One run at a time writes to a folder; the lock ends with its holder, however that ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time

import pytest

import train
from chatbridge.common import run_folder
from chatbridge.common.run_folder import NAME, FolderError, RunLock
from chatbridge.report.__main__ import main as report
from tests import tiny
from tests.patience import PATIENCE
from tests.processes import FORK, Run, events, metrics


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(run_folder, "ENDING_SECONDS", 0.2)
    monkeypatch.setattr(run_folder, "LEASE_SECONDS", 0.6)


@pytest.fixture
def hold(tmp_path):
    """Lets another process hold the lock on the test's folder; it ends with the test."""
    started = []

    def begin(host: str | None = None, children: bool = False):
        ready = FORK.Event()

        def work():
            if host is not None:
                socket.gethostname = lambda: host
            RunLock(tmp_path).acquire()
            if children and os.fork() == 0:  # as a data-loader worker, which notices its parent's end later
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                (tmp_path / "child").write_text(str(os.getpid()))
                time.sleep(PATIENCE)
                os._exit(0)
            ready.set()
            time.sleep(PATIENCE)

        process = FORK.Process(target=work, daemon=True)
        process.start()
        assert ready.wait(PATIENCE)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def test_the_second_is_told_who_the_first_is(tmp_path, hold):
    first = hold()
    with pytest.raises(FolderError) as caught:
        RunLock(tmp_path).acquire()
    said = str(caught.value)
    assert f"process {first.pid} on {socket.gethostname()}, since 20" in said and "take another run.output_dir" in said
    assert str(tmp_path) in said and "\n" not in said


def test_a_kill_lets_go_at_once_even_while_workers_live(tmp_path, hold, monkeypatch):
    monkeypatch.setattr(run_folder, "ENDING_SECONDS", 0.0)
    first = hold(children=True)
    first.kill()
    first.join()
    while not (tmp_path / "child").exists():
        time.sleep(0.01)
    child = int((tmp_path / "child").read_text())
    with RunLock(tmp_path):
        os.kill(child, 0)  # it is still there
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    os.kill(child, signal.SIGKILL)


def test_one_that_is_ending_is_waited_for(tmp_path, hold, monkeypatch):
    monkeypatch.setattr(run_folder, "ENDING_SECONDS", PATIENCE)
    first = hold()
    FORK.Process(target=lambda: (time.sleep(0.3), os.kill(first.pid, signal.SIGKILL)), daemon=True).start()
    with RunLock(tmp_path):
        first.join()
        assert first.exitcode == -signal.SIGKILL


def test_one_of_another_host_is_waited_for_longer(tmp_path, hold, monkeypatch):
    hold(host="node7")
    told, began = [], time.monotonic()
    monkeypatch.setattr(run_folder.logger, "warning", lambda text, *values: told.append(text % values))
    with pytest.raises(FolderError, match="on node7"):
        RunLock(tmp_path).acquire()
    assert time.monotonic() - began >= 0.6
    (line,) = told
    assert "on node7" in line and line.endswith("waiting up to 0.6 s for its end")


def test_twice_in_one_process(tmp_path, hold):
    with RunLock(tmp_path) as lock:
        with pytest.raises(FolderError, match="another run of this process"), RunLock(os.path.relpath(tmp_path)):
            pass
        lock.acquire()  # it has it
        other = FORK.Process(target=lambda: os._exit(_refused(tmp_path)))
        other.start()
        other.join()
        assert other.exitcode == 0
    with RunLock(tmp_path):
        pass


def _refused(folder) -> int:
    run_folder._held.clear()  # what a forked process believes to hold, and does not
    try:
        RunLock(folder).acquire()
    except FolderError:
        return 0
    return 1


def test_all_processes_of_a_run_are_told(tmp_path, hold):
    first = hold()
    tree = tiny.make_config(tmp_path, max_steps=2, output_dir=str(tmp_path))
    run = Run(tmp_path / "ranks", ["--cfg-path", str(tiny.write_yaml(tmp_path, tree))], world=2)
    assert run.wait() == [1, 1] and "Traceback" not in run.text()
    assert f"(process {first.pid} on " in run.logs[0].read_text()


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
    with RunLock(tmp_path / "new") as lock:
        assert not (tmp_path / "new").exists()
        lock.acquire()
        assert (tmp_path / "new" / NAME).exists()
    with RunLock(tmp_path / "other", wanted=False) as lock:
        lock.acquire()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_folder.fcntl, "lockf", lockf)
    living = FORK.Process(target=time.sleep, args=(PATIENCE,), daemon=True)
    living.start()
    began = run_folder._start_time(living.pid)
    holder = {"host": socket.gethostname(), "pid": living.pid, "since": "2026", "began": began}

    def taken(**changed) -> bool:
        (tmp_path / NAME).write_text(json.dumps(holder | changed))
        try:
            with RunLock(tmp_path):
                return True
        except FolderError:
            return False

    assert not taken()
    assert taken(began=holder["began"] - 1)  # another process has its number by now
    assert taken(host="node7")  # which cannot be asked
    living.kill()
    living.join()
    assert taken()
    for damaged in ("", "[]", "{", '{"host": 3}', "\xff"):
        (tmp_path / NAME).write_text(damaged, encoding="latin-1")
        with RunLock(tmp_path):
            pass


def test_two_runs_and_an_evaluation_in_one_folder(tmp_path, capsys):
    tree = tiny.make_config(tmp_path, max_steps=100_000, checkpoint_every=5, report_every=0)
    output = tmp_path / "output"
    arguments = ["--cfg-path", str(tiny.write_yaml(tmp_path, tree))]
    first = Run(tmp_path / "first", arguments)
    assert first.until(lambda: (output / "checkpoints" / "latest").exists())

    asked = {**tree, "validation": tree["datasets"], "run": {"runner": "evaluation", "output_dir": str(output)}}
    asked["run"]["device"] = "cpu"
    del asked["datasets"]
    for name, other in (
        ("second", arguments),
        ("asked", ["--cfg-path", str(tiny.write_yaml(tmp_path, asked, "a.yaml"))]),
    ):
        run = Run(tmp_path / name, other)
        assert run.wait() == [1]
        (said,) = [line for line in run.text().splitlines() if line.startswith("error:")]
        assert f"another run writes there (process {first.processes[0].pid} on " in said
        assert "Traceback" not in run.text()
    assert report([str(output), "--output", str(tmp_path / "page.html")]) == 0  # who only reads is not hindered
    assert train.main([*arguments, "--check"]) == 0

    first.kill()
    assert events(output).count("start") == 1 and "failed" not in events(output)
    third = Run(tmp_path / "third", [*arguments, "--options", f"run.stop_at={metrics(output)[-1]['step'] + 3}"])
    assert third.wait() == [0]
    steps = [row["step"] for row in metrics(output)]
    assert steps == sorted(set(steps)) and events(output).count("resumed") == 1
