"""Real torchrun: killed workers and nodes come back from the last checkpoint, and signals become one.

Every start of torchrun imports PyTorch anew in each process; that is most of the time these tests take. Runs to compare
with are forked (`tests/processes.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from chatbridge.common.checkpoint import find_latest, load_trainer
from tests import tiny
from tests.patience import PATIENCE
from tests.processes import Run, arguments, assert_same, events, free_port, metrics
from tests.runners.tools import metrics_so_far, prepare

pytestmark = pytest.mark.slow

STEPS = 60


class Agents:
    """torchrun on nodes that share this machine, each an agent with one address of the loopback.

    Args:
        folder: for their output. output: the run folder. per_node: processes of each agent.
    """

    def __init__(self, folder: Path, yaml: Path, output: Path, nodes: int = 1, per_node: int = 1, *options: str):
        self.folder, self.output, self.nodes, self.per_node = folder, output, nodes, per_node
        self.training = [str(tiny.ROOT / "train.py"), *arguments(yaml, output, *options)]
        self.port = free_port()
        self.agents: dict[int, subprocess.Popen] = {}
        for node in range(nodes):
            self.start(node)

    def start(self, node: int) -> None:
        """An agent of its own session; a second one in the place of a dead one, too."""
        # A dead node is noticed after three heartbeats that did not come; torchrun's own are 5 s apart.
        conf = f"is_host={int(node == 0)},keep_alive_interval=1,join_timeout=60,close_timeout=5"
        flags = [
            f"--nnodes={self.nodes}", f"--nproc-per-node={self.per_node}", "--max-restarts=3", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{self.port}", "--rdzv-id=test", f"--rdzv-conf={conf}",
            f"--local-addr=127.0.0.{node + 1}",
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if self.nodes > 1:  # docs/multinode.md
            environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with (self.folder / f"agent{node}.txt").open("a") as out:
            self.agents[node] = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *flags, *self.training],
                stdout=out, stderr=out, env=environment, cwd=tiny.ROOT, start_new_session=True,
            )  # fmt: skip

    def workers(self, node: int = 0) -> dict[int, psutil.Process]:
        """An agent's training processes by their rank."""
        found = {}
        for process in psutil.Process(self.agents[node].pid).children():
            with contextlib.suppress(psutil.Error):
                found[int(process.environ()["RANK"])] = process
        return found

    def kill(self, node: int) -> None:
        """SIGKILL to an agent and everything that it started: the node is gone."""
        gone = psutil.Process(self.agents[node].pid).children(recursive=True)
        self.agents[node].kill()
        for process in gone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.agents[node].wait()

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
        """Wait for something that must come true while the agents run."""
        end = time.monotonic() + seconds
        while not condition():
            ended = [node for node, agent in self.agents.items() if agent.poll() is not None]
            assert not ended and time.monotonic() < end, f"agents {ended} have ended:\n{self.text()}"
            time.sleep(0.005)

    def until_step(self, step: int) -> None:
        """Wait until a step, or a later one, is logged."""
        logged = self.output / "metrics.jsonl"
        self.until(lambda: logged.exists() and len(metrics_so_far(self.output)) >= step)

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """The agents' exit statuses."""
        end = time.monotonic() + seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            return [agent.wait(max(0.1, end - time.monotonic())) for agent in self.agents.values()]
        raise AssertionError(f"torchrun did not end within {seconds} s:\n{self.text()}")

    def text(self) -> str:
        return "\n".join(file.read_text(errors="replace")[-3000:] for file in sorted(self.folder.glob("agent*.txt")))

    def __enter__(self) -> Agents:
        return self

    def __exit__(self, *_: object) -> None:
        for node, agent in self.agents.items():
            if agent.poll() is None:
                self.kill(node)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The YAML and the folder of an uninterrupted run on two processes of one node, without torchrun."""
    folder = tmp_path_factory.mktemp("elastic")
    yaml, output = prepare(folder, max_steps=STEPS, checkpoint_every=5), folder / "whole"
    assert set(Run(output, arguments(yaml, output), 2).wait()) == {0}
    return yaml, output


def test_a_killed_worker_brings_the_group_back_by_itself(whole, tmp_path):
    """The one that writes the checkpoints; the test below kills another."""
    yaml, out = whole[0], tmp_path / "out"
    with Agents(tmp_path, yaml, out, per_node=2) as run:
        run.until_step(12)
        run.workers()[0].kill()
        assert run.wait() == [0], run.text()
    assert_same(whole[1], out)
    assert events(out).count("resumed") == 1 and events(out)[-1] == "end"


def test_two_nodes_are_one_node_and_a_lost_one_is_replaced(whole, tmp_path):
    """Two agents find each other; one is killed with all its processes, the other waits for a new one."""
    yaml, out = whole[0], tmp_path / "out"
    with Agents(tmp_path, yaml, out, nodes=2) as run:
        run.until_step(12)
        assert [set(run.workers(node)) for node in (0, 1)] == [{0}, {1}]
        assert [row["loss"] for row in metrics(out)[:12]] == [row["loss"] for row in metrics(whole[1])[:12]]
        assert "resumed" not in events(out)
        run.kill(1)
        run.start(1)
        assert run.wait() == [0, 0], run.text()
    assert_same(whole[1], out)
    assert events(out).count("resumed") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_of_the_current_step(whole, tmp_path, number):
    """SIGTERM goes to torchrun, which hands it on and ends with status 1; SIGUSR1 goes to one training process."""
    yaml, out = whole[0], tmp_path / "out"
    options = ("run.checkpoint_every=1000", "run.num_workers=1")
    with Agents(tmp_path, yaml, out, 1, 2, *options) as run:
        run.until_step(8)
        workers = run.workers()
        run.agents[0].send_signal(number) if number == signal.SIGTERM else workers[1].send_signal(number)
        assert run.wait() == [1 if number == signal.SIGTERM else 0], run.text()
        assert not any(process.is_running() for process in workers.values())
    stopped = load_trainer(find_latest(out))["step"]
    assert stopped == metrics(out)[-1]["step"] < STEPS
    assert "signal" in events(out)


def test_nodes_that_do_not_share_the_run_folder_are_refused(whole, tmp_path):
    """A rank that finds no checkpoint where another finds one would train something else, unnoticed."""
    yaml, out = whole[0], tmp_path / "out"
    assert set(Run(out, arguments(yaml, out, "run.stop_at=5"), 2).wait()) == {0}

    def alone(rank: int) -> None:
        from chatbridge.runners import resume

        if rank == 1:
            resume.find_latest = lambda output: None

    run = Run(out, arguments(yaml, out), 2, before=alone)
    assert set(run.wait()) == {1}
    assert "rank 0: step_00000005, rank 1: none" in run.text()
    assert len(metrics(out)) == 5


def test_the_stacks_of_a_rank_that_hung_stay_after_a_restart(whole, tmp_path):
    yaml, out = whole[0], tmp_path / "out"
    out.mkdir()
    (out / "hang_rank1.txt").write_text("stacks of before")
    assert set(Run(out, arguments(yaml, out, "run.stop_at=1"), 2).wait()) == {0}
    assert [(file.name, file.read_text()) for file in out.glob("hang_*")] == [("hang_rank1.txt", "stacks of before")]


def test_an_error_of_another_rank_than_the_first_is_told(whole, tmp_path):
    """Every rank judges the samples that it reads itself."""
    yaml, out = whole[0], tmp_path / "out"

    def spoil(rank: int) -> None:
        from chatbridge.common.ledger import Ledger, TooManyBadSamples

        def add(*_: Any) -> None:
            raise TooManyBadSamples("dataset 'images': too many of them")

        if rank == 1:
            Ledger.add = add

    run = Run(out, arguments(yaml, out), 2, before=spoil)
    assert set(run.wait()) == {1}
    assert "rank 1, step 0: TooManyBadSamples: dataset 'images': too many of them" in run.text()


STAND_INS = {
    "srun": """echo $$ > srun.pid
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 "$@" & SLURM_NODEID=1 "$@" & wait -n; one=$?; wait -n; exit $((one + $?))""",
    # As under Slurm's simplest process tracking, torchrun gets the signal, too, and must not care.
    "scancel": """[[ $* == "--signal=USR1 7" ]] || exit 1
for task in $(pgrep -P "$(cat srun.pid)"); do kill -USR1 "$task" $(pgrep -P "$task"); done""",
    "scontrol": """[[ $1 == show ]] && printf "first\\nsecond\\n" || echo "$*" >> scontrol.txt""",
    "torchrun": f"""echo "$*" >> torchrun.txt
{sys.executable} worker.py & wait $!""",
}

WORKER = """import os, signal, sys, time

def stop(*_):
    open("told.txt", "a").write("told ")
    sys.exit(int(os.environ["STATUS"]))

signal.signal(signal.SIGUSR1, stop)  # also where it was ignored before, as the runner does
open("ready" + os.environ["SLURM_NODEID"], "w")
time.sleep(3600)
"""


@pytest.mark.parametrize("status", [0, 1])
def test_the_slurm_script_hands_on_the_signal_and_requeues(tmp_path, status):
    """With commands that stand in for Slurm's and torchrun's; a run that fails is not requeued."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "worker.py").write_text(WORKER)
    given = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "STATUS": str(status)}
    job = subprocess.Popen(
        ["bash", str(tiny.ROOT / "docs" / "multinode.sbatch"), "a.yaml", "run.seed=1", "run.stop_at=2"],
        cwd=tmp_path, env=os.environ | given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE
        while not all((tmp_path / f"ready{node}").exists() for node in (0, 1)):
            assert job.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        assert bool(job.wait(PATIENCE)) == bool(status)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert (tmp_path / "told.txt").read_text().count("told") == 2
    assert (tmp_path / "scontrol.txt").exists() == (status == 0)
    lines = (tmp_path / "torchrun.txt").read_text().splitlines()
    assert sorted("is_host=1" in line for line in lines) == [False, True]
    assert all("--rdzv-endpoint=first:20007" in line and "--nnodes=2" in line for line in lines)
    assert all(line.endswith("train.py --cfg-path a.yaml --options run.seed=1 run.stop_at=2") for line in lines)


@pytest.mark.parametrize("status", [0, 3])
def test_the_slurm_script_tells_the_status_of_what_ended_while_it_dealt_with_a_signal(tmp_path, status):
    script = (tiny.ROOT / "docs" / "multinode.sbatch").read_text()
    function = script[script.index("ended() {") :].split("\n}\n")[0] + "\n}\n"
    during = "trap 'kill $child; while kill -0 $child 2>/dev/null; do sleep 0.01; done; touch dealt' USR1\n"
    child = f"(trap 'exit {status}' TERM; touch ready; while :; do sleep 0.01; done) & child=$!\n"
    signal = "(until [ -e ready ]; do sleep 0.01; done; sleep 0.2; kill -USR1 $$) &\n"
    done = subprocess.run(
        ["bash", "-c", function + during + child + signal + "ended $child"], cwd=tmp_path, timeout=PATIENCE
    )
    assert (tmp_path / "dealt").exists() and done.returncode == status
