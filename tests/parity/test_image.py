"""Pixels against the original's three ways of preparing them."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.common.registry import PROCESSORS
from chatbridge.processors.image import PixelTransform
from chatbridge.processors.video import VideoConfig
from tests.variants import built

CLOSE = {"atol": 1e-5, "rtol": 0}


def processor(case, **keys):
    c = case.info["config"]
    return built(PROCESSORS, "image", image_size=c["resolution"], mean=c["mean"], std=c["std"], **keys)


@pytest.fixture
def picture(case, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(case.inputs["image_hwc"].numpy()).save(path)
    return path


@pytest.mark.golden("image_preprocess*")
@pytest.mark.parametrize("compat, antialias", [("default", "true"), ("original", "false")])
def test_training_mapper(case, picture, compat, antialias):
    """Squashed bilinearly as a float tensor; in training there is nothing random about it."""
    expected = case.outputs[f"mapper_none_antialias_{antialias}"]
    ours = processor(case, compat=compat)
    torch.testing.assert_close(ours.load(picture, Training(random.Random(0))), expected, **CLOSE)
    evaluated = processor(case, compat=compat, eval_resize="bilinear").load(picture)
    torch.testing.assert_close(evaluated, expected, **CLOSE)


@pytest.mark.golden("image_preprocess*")
@pytest.mark.parametrize("compat, antialias", [("default", "true"), ("original", "false")])
def test_crop_flip_evaluation(case, picture, compat, antialias):
    expected = case.outputs[f"mapper_crop_flip_eval_antialias_{antialias}"]
    ours = processor(case, compat=compat, transform="crop_flip", eval_resize="bilinear")
    torch.testing.assert_close(ours.load(picture), expected, **CLOSE)


@pytest.mark.golden("image_preprocess*")
def test_evaluation_is_bicubic(case, picture):
    expected = case.outputs["blip_image_eval"]
    torch.testing.assert_close(processor(case).load(picture)[0], expected, **CLOSE)


@pytest.mark.golden("image_preprocess*")
def test_evaluation_of_frames(case):
    """Frames that the decoder has resized are only normalised."""
    c = case.info["config"]
    clip_cthw, expected = case.inputs["clip_cthw"], case.outputs["alpro_eval_transform"]
    transform = PixelTransform(VideoConfig(image_size=c["resolution"], mean=c["mean"], std=c["std"]))
    frames = list(clip_cthw.permute(1, 2, 3, 0).to(torch.uint8).numpy())
    torch.testing.assert_close(transform(frames, EVALUATION).transpose(0, 1), expected, **CLOSE)
