"""Decoders that do not come back."""

from __future__ import annotations

import json
import os
import random
import threading

import pytest
import soundfile

from chatbridge.common.read_mode import Training
from chatbridge.datasets import AnnotatedDataset, AnnotationsConfig, Parts
from chatbridge.processors import (
    AudioConfig,
    AudioProcessor,
    MediaError,
    VideoConfig,
    VideoProcessor,
    sound_files,
    video_files,
)
from chatbridge.processors.time_limit import within
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.tasks import AlignmentConfig, AlignmentTask
from tests.datasets.tools import TOKENIZER, two_rows
from tests.media_files import tone, write_video


@pytest.fixture
def never():
    """Something to wait for until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_results_and_errors_come_through():
    assert within(60, "a", divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        within(60, "a", divmod, 7, 0)


def test_what_takes_too_long_is_left_alone(never):
    late = []
    with pytest.raises(MediaError, match=r"^a\.mp4: timed out: it was not decoded within 0\.05 s$"):
        within(0.05, "a.mp4", lambda: never.wait() and late.append("its result"))
    assert within(60, "b", int, "5") == 5, "the next file has a thread of its own"
    never.set()
    assert within(60, "c", str, 6) == "6"


def test_every_thread_has_its_own(never):
    answers = {}

    def ask(number: int) -> None:
        answers[number] = [within(60, "a", int, f"{number}") for _ in range(50)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [number] * 50 for number in range(4)}


def test_in_a_forked_process():
    assert within(60, "a", int, "1") == 1
    child = os.fork()
    if child == 0:
        os._exit(0 if within(60, "a", int, "2") == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0


def hang_at(monkeypatch, module, name: str, part: str, event: threading.Event) -> None:
    """Make a decoder wait at files whose name has a part."""
    real = getattr(module, name)

    def decoder(source, *args):
        if part in str(source):
            event.wait()
        return real(source, *args)

    monkeypatch.setattr(module, name, decoder)


def test_sound_track(tmp_path, monkeypatch, never):
    path = write_video(tmp_path / "stuck.mp4", [0] * 4, sound=tone(0.5))
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16000)
    hang_at(monkeypatch, sound_files, "_with_av", "stuck", never)
    processor = AudioProcessor(AudioConfig(frames_per_clip=64, read_seconds=0.2))
    with pytest.raises(MediaError, match=r"stuck\.mp4: timed out: it was not decoded within 0\.2 s"):
        processor.load(path)
    assert processor.load(tmp_path / "a.wav").any()


def test_training_takes_another_sample_and_says_so(tmp_path, monkeypatch, never):
    names = ["good.mp4", "stuck.mp4"]
    for name in names:
        write_video(tmp_path / name, [100] * 6, size=(96, 96))
    entries = [{"id": name, "video_id": name, "caption": "red"} for name in names]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    hang_at(monkeypatch, video_files, "_with_decord", "stuck", never)
    processors = {"video": VideoProcessor(VideoConfig(image_size=28, read_seconds=0.3))}
    parts = Parts(AlignmentTask(AlignmentConfig()), load_tokenizer(TOKENIZER), {"video": two_rows}, processors)
    config = AnnotationsConfig(
        kind="tv-cap", annotations=str(tmp_path / "list.json"), media={"video": str(tmp_path)}, batch_size=1
    )
    dataset = AnnotatedDataset(config, "clips", parts)
    assert dataset.read(dataset.record(0), dataset.kinds[0], Training(random.Random(0)))
    example, entries = dataset.example(1, 0)
    assert example.tokens.id == "good.mp4" and entries
    for entry in entries:
        assert (entry.dataset, entry.sample_id, entry.count) == ("clips", "stuck.mp4", 1)
        assert entry.reason == "timed out: it was not decoded within 0.3 s" and entry.replaced_by == "good.mp4"
