"""Checkpoints that are not what was written: found whatever bit it is, told in one line, never resumed from unasked."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import train
from chatbridge.common.checkpoint import CheckpointError, find_latest, load_trainer
from chatbridge.common.checksums import SUMS, write_sums
from chatbridge.common.logging import EventLog
from chatbridge.runners import checkpoint_writer
from chatbridge.weights import WeightsError, open_weights
from chatbridge.weights.__main__ import main as weights_main
from tests import tiny

FILES = ("model.safetensors", "trainer.pt", "config.yaml", SUMS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps that left checkpoints at 2 and 4, and its YAML for six."""
    folder = tmp_path_factory.mktemp("run")
    tree = tiny.make_config(folder, max_steps=6, checkpoint_every=2, stop_at=4, report_every=0)
    assert tiny.run(folder, tree) == 0
    tree["run"].pop("stop_at")
    return folder, tiny.write_yaml(folder, tree, "six.yaml")


@pytest.fixture
def run(trained, tmp_path, capsys):
    """The same in a folder of its own: (checkpoints, a function that goes on and gives status and errors)."""
    folder, yaml_file = trained
    output = tmp_path / "output"
    shutil.copytree(folder / "output", output)

    def go_on(*options):
        capsys.readouterr()
        options = [f"run.output_dir={output}", *options]
        return train.main(["--cfg-path", str(yaml_file), "--options", *options]), capsys.readouterr().err

    return output / "checkpoints", go_on


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


def errors(said):
    return [line for line in said.splitlines() if line.startswith("error: ")]


def resumed_at(checkpoints):
    rows = (checkpoints.parent / "events.jsonl").read_text().splitlines()
    return [row for row in rows if '"resumed"' in row][-1]


def test_the_files_have_sums_that_anybody_can_check(run):
    folder = run[0] / "step_00000004"
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(3))
def test_any_flipped_bit_is_found(run, name, seed):
    checkpoints, go_on = run
    file = checkpoints / "step_00000004" / name
    flip(file, random.Random(f"{name}{seed}").randrange(8 * file.stat().st_size))
    status, said = go_on()
    (line,) = errors(said)
    assert status == 1 and "step_00000004" in line
    assert "the newest good one is step_00000002: name 'checkpoint' in run.accept_changes" in line


def test_the_newest_good_one_is_taken_if_told_to(run):
    checkpoints, go_on = run
    flip(checkpoints / "step_00000004" / "trainer.pt", 9999)
    status, said = go_on("run.accept_changes=[checkpoint]")
    assert status == 0 and "from step_00000002" in resumed_at(checkpoints)
    assert "trainer.pt: is not what was written" in said  # the log tells of it
    assert find_latest(checkpoints.parent).name == "step_00000006"
    assert go_on()[0] == 0  # the acceptance is not needed any more


def test_or_by_its_path(run, tmp_path):
    checkpoints, go_on = run
    flip(checkpoints / "step_00000004" / "model.safetensors", 9999)
    status, said = go_on(f"run.resume={checkpoints / 'step_00000004'}")
    assert status == 1 and "model.safetensors: is not what was written" in errors(said)[0]
    assert go_on(f"run.resume={checkpoints / 'step_00000002'}")[0] == 0
    assert "from step_00000002" in resumed_at(checkpoints)


def test_when_none_is_good(run):
    checkpoints, go_on = run
    for folder in checkpoints.glob("step_*"):
        (folder / "config.yaml").unlink()
    status, said = go_on("run.accept_changes=[checkpoint]")
    assert status == 1 and "there is no good one: restore it, or take another run.output_dir" in errors(said)[0]


def test_the_sums_cannot_be_left_out(run):
    checkpoints, go_on = run
    (checkpoints / "step_00000004" / SUMS).unlink()
    status, said = go_on()
    assert status == 1 and f"{SUMS}: does not exist, though it was written" in errors(said)[0]


def without_sums(folder):
    """As versions before this wrote it."""
    (folder / SUMS).unlink()
    file = folder / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "chatbridge", "step": "4"})
    return folder


def test_one_of_before_goes_on_and_the_log_says_what_is_not_known(run):
    checkpoints, go_on = run
    without_sums(checkpoints / "step_00000004")
    status, said = go_on()
    assert status == 0 and "whether it was altered is not known" in said
    assert "from step_00000004" in resumed_at(checkpoints)


STATES = {
    "a list": [1, 2],
    "empty": {},
    "step": {"step": None},
    "world": {"world": 0},
    "ranks": {"world": 2},
    "reading": {"reading": [{"batches": {}}]},
    "reading of another kind": {"reading": [{"batches": 5, "ledger": {}}]},
    "optimizers": {"optimizers": [7]},
    "other optimizers": {"optimizers": []},
    "moments": {"optimizers": [{"state": {}, "param_groups": []}]},
    "guard": {"guard": 3},
    "drawn": {"drawn": [2]},
}


@pytest.mark.parametrize("name", STATES)
def test_a_trainers_state_that_is_none_is_one_line(run, name):
    checkpoints, go_on = run
    file = without_sums(checkpoints / "step_00000004") / "trainer.pt"
    state = STATES[name]
    torch.save(load_trainer(file.parent) | state if state and isinstance(state, dict) else state, file)
    status, said = go_on()
    (line,) = errors(said)
    assert status == 1 and "step_00000004/trainer.pt: " in line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer.pt", b""), ("trainer.pt", b"no pickle"), ("trainer.pt", b"PK\x03\x04" + bytes(300)),
        ("trainer.pt", None), ("model.safetensors", b"{}"), ("model.safetensors", (2**40).to_bytes(8, "little") * 9),
        ("config.yaml", b"a: [b"), ("config.yaml", b"- 1"), ("config.yaml", b"\xff\xfe"), ("config.yaml", None),
    ],
)  # fmt: skip
def test_a_damaged_file_of_one_without_sums_is_one_line(run, name, content):
    checkpoints, go_on = run
    file = without_sums(checkpoints / "step_00000004") / name
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    status, said = go_on()
    (line,) = errors(said)
    assert status == 1 and f"step_00000004/{name}: " in line


@pytest.mark.parametrize("text", ["step_00000009", "../elsewhere", "\x00\x01", "step_"])
def test_a_pointer_to_nothing_starts_no_run_anew(run, text):
    checkpoints, go_on = run
    (checkpoints / "latest").write_text(text)
    status, said = go_on()
    (line,) = errors(said)
    assert status == 1 and "latest: names" in line and "the newest good one is step_00000004" in line


def test_nor_does_one_to_a_folder_that_has_lost_its_weights(run):
    checkpoints, go_on = run
    for folder in checkpoints.glob("step_*"):
        (folder / "model.safetensors").unlink()
    status, said = go_on()
    (line,) = errors(said)
    assert status == 1 and "latest: names 'step_00000004', which is no checkpoint to be read; there: none" in line


def test_killed_before_the_pointer_was_written_it_goes_on(run):
    checkpoints, go_on = run
    (checkpoints / "latest").unlink()
    assert go_on()[0] == 0 and "from step_00000004" in resumed_at(checkpoints)


def test_what_else_lies_among_them_is_left_alone(run):
    checkpoints, go_on = run
    for name in ("step_", "step_x", "step_12_copy", "notes"):
        (checkpoints / name).mkdir()
    (checkpoints / "step_10").write_text("a file")
    status, _ = go_on("run.keep_checkpoints=1")
    assert status == 0
    left = sorted(p.name for p in checkpoints.iterdir())
    assert left == ["latest", "notes", "step_", "step_00000006", "step_10", "step_12_copy", "step_x"]


def test_a_file_in_the_place_of_a_checkpoint_ends_the_run_with_its_error(run):
    checkpoints, go_on = run
    (checkpoints / "step_00000006").write_text("in the way")
    status, said = go_on()
    assert status == 1 and "step_00000006: cannot be written" in errors(said)[0]
    assert "step_00000004 is intact" in errors(said)[0]


def test_a_file_in_the_place_of_the_folder_ends_the_run_with_its_error(run):
    checkpoints, go_on = run
    shutil.rmtree(checkpoints)
    checkpoints.write_text("in the way")
    status, said = go_on()
    assert status == 1 and "Not a directory" in errors(said)[0]


@pytest.mark.parametrize("background", ["true", "false"])
def test_whatever_ends_the_writer_ends_the_run(run, monkeypatch, background):
    """A thread that dies is silent; a run whose last checkpoint was not written has not ended well."""

    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run[1](f"run.async_checkpoints={background}")


def test_nor_does_an_event_that_cannot_be_written(run, monkeypatch):
    """A disk that is full for the checkpoint is so for the line that tells of it."""
    write = EventLog.write

    def limited(self, step, event, text):
        if event.startswith("checkpoint"):
            raise OSError("No space left on device")
        write(self, step, event, text)

    monkeypatch.setattr(EventLog, "write", limited)
    status, said = run[1]()
    assert status == 1 and "No space left on device" in errors(said)[0]


class TestWeightsFromACheckpoint:
    """Stage 2, evaluations, chats and the zoo read them: `model.weights`."""

    def test_a_flipped_bit_is_found(self, run, capsys):
        folder = run[0] / "step_00000004"
        assert open_weights(run[0].parent).tensors
        flip(folder / "model.safetensors", -30)
        for path in (folder, run[0].parent, folder / "model.safetensors"):
            with pytest.raises(WeightsError, match="are damaged: .*is not what was written"):
                open_weights(path)
        assert weights_main(["inspect", str(folder)]) == 1
        assert "is not what was written" in capsys.readouterr().out

    def test_other_files_of_it_do_not_matter(self, run):
        folder = run[0] / "step_00000004"
        flip(folder / "trainer.pt", 999)
        assert open_weights(folder).tensors

    def test_files_without_sums_are_read_as_before(self, run):
        assert open_weights(without_sums(run[0] / "step_00000004")).tensors


def test_sums_of_a_folder_with_odd_names(tmp_path):
    (tmp_path / "a b").write_text("x")
    (tmp_path / "ü").write_text("")
    write_sums(tmp_path)
    subprocess.run(["sha256sum", "--check", SUMS], cwd=tmp_path, check=True, capture_output=True)


def test_a_config_of_another_meaning_is_still_refused(run):
    checkpoints, go_on = run
    tree = yaml.safe_load((checkpoints / "step_00000004" / "config.yaml").read_text())
    assert tree["run"]["init_lr"] == 1e-3
    status, said = go_on("run.init_lr=0.5")
    assert status == 1 and "run.init_lr: 0.001 -> 0.5" in said


def test_a_pointer_that_cannot_be_read(run):
    checkpoints, _ = run
    (checkpoints / "latest").unlink()
    (checkpoints / "latest").mkdir()
    with pytest.raises(CheckpointError, match="latest: is a folder"):
        find_latest(checkpoints.parent)
