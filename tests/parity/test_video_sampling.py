"""Frame choice against the original's, including the calls it makes to Python's random generator."""

from __future__ import annotations

import random
import re

import pytest
from PIL import Image

from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.original import processors as original
from chatbridge.processors.sampling import frame_groups, headtail, pick, uniform
from chatbridge.processors.video import VideoConfig, VideoProcessor


@pytest.fixture
def results(golden):
    return golden("video_sampling").info["results"]


def test_groups(results):
    for r in results:
        groups = frame_groups(r["frames"], r["n"])
        assert [[g[0], g[-1], len(g)] for g in groups] == r["mapper_train_groups_first_last_len"], r["frames"]
        ours = VideoProcessor(VideoConfig(num_frames=r["n"], eval_sampling="groups"))
        assert ours.indices(r["frames"]) == pick(groups, EVALUATION) == r["mapper_eval"]


def test_training_choice_with_seed_zero(results):
    for r in results:
        ours = VideoProcessor(VideoConfig(num_frames=r["n"]))
        assert ours.indices(r["frames"], Training(random.Random(0))) == r["mapper_train_seed0"], r["frames"]


def test_uniform(results):
    for r in results:
        frames, n, expected = r["frames"], r["n"], r["alpro_uniform"]
        assert original.uniform(frames, n) == expected
        ours = VideoProcessor(VideoConfig(num_frames=n)).indices(frames)
        assert len(ours) == n and ours == (expected + [frames - 1] * n)[:n]


def test_uniform_processor(golden):
    for r in golden("video_sampling").info["alpro_eval_processor"]:
        assert uniform(r["frames"], r["n"]) == r["indices"]
        assert r["output_shape"][1] == r["n"]


def test_headtail(results):
    for r in results:
        expected = r["alpro_headtail_seed0"]
        if isinstance(expected, str):
            assert expected.startswith("ValueError")
            with pytest.raises(ValueError, match="two frames or more"):
                original.headtail(r["frames"], r["n"], random.Random(0))
        else:
            assert original.headtail(r["frames"], r["n"], random.Random(0)) == expected
        ours = headtail(r["frames"], r["n"], random.Random(0))
        assert len(ours) == r["n"] and ours == sorted(ours) and ours[-1] < r["frames"]


def test_uniform_overshoot(golden):
    """The original's float step gives an index too many for some lengths; ours never, and never past the end."""
    overshoot = golden("video_sampling").info["uniform_overshoot"]
    for frames, n, last, count in overshoot["examples"]:
        theirs = original.uniform(frames, n)
        assert (theirs[-2:], len(theirs)) == (last, count)
        ours = uniform(frames, n)
        assert len(ours) == n and ours == theirs[:n] and ours[-1] < frames
    ranges = [range(int(a), int(b) + 1) for a, b in re.findall(r"(\d+)\.\.(\d+) in [AB]", overshoot["note"])]
    this = next(r for r in ranges if overshoot["examples"][0][0] in r)
    most = int(re.search(r"n 1\.\.(\d+)", overshoot["note"]).group(1))
    strange = sum(len(original.uniform(f, n)) != min(n, f) for f in this for n in range(1, most + 1))
    assert strange == overshoot["count"]


def test_frame_folder(results, tmp_path):
    """A folder of pictures: the middle one of each group, in name order (checked by their colours)."""
    for r in (r for r in results if r["frames"] <= 30):
        folder = tmp_path / f"{r['frames']}_{r['n']}"
        folder.mkdir()
        for i in range(r["frames"]):
            Image.new("RGB", (4, 4), (8 * i, 0, 0)).save(folder / f"img_{i:04d}.jpg".replace(".jpg", ".png"))
        config = VideoConfig(num_frames=r["n"], image_size=4, mean=[0.0] * 3, std=[1 / 255] * 3)
        red = VideoProcessor(config).load(folder)[:, 0, 0, 0]
        expected = [int(re.search(r"\d+", name).group()) for name in r["frame_folder_eval"]]
        assert (red / 8).round().int().tolist() == expected
