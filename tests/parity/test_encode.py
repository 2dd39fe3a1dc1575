"""From media to rows for the language model, step by step."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch.testing import assert_close

from tests.parity.model_cases import build_model


def record(parts):
    """Outputs of each named module, in the order of its calls."""
    seen = defaultdict(list)
    for name, module in parts.items():
        module.register_forward_hook(lambda _m, _a, output, name=name: seen[name].append(output))
    return seen


@pytest.mark.golden("chatbridge_encode*")
def test_every_step(case):
    model = build_model(case.folder, case.info["config"]["multi_sample"], case.info["weights_file"])
    visual, audio = model.bridges["visual"], model.bridges["audio"]
    parts = {"vit": visual.encoder, "ln_vision": visual.norm, "beats": audio.encoder, "ln_audio": audio.norm}
    parts |= {"audio_trans": audio.adapter, "qformer": visual.projector.qformer}
    seen = record(parts)
    video, clips = case.inputs["video"], case.inputs["audio"]
    with torch.no_grad():
        rows = {
            "llama_proj_video": model.encode("video", video),
            "llama_proj_audio": model.encode("audio", clips),
            "llama_proj_frame0_as_4d_image": model.encode("image", video[:, :1]),
        }
    assert len(seen["beats"]) == 1 and len(seen["vit"]) == 2, "all frames of a batch go through in one call"
    frames = seen["vit"][0].unflatten(0, video.shape[:2])
    heard = seen["beats"][0].unflatten(0, clips.shape[:2])
    got = rows | {
        "vit_frame0": frames[:, 0],
        "ln_vision_frame0": seen["ln_vision"][0][:, 0],
        "beats_clip0": heard[:, 0],
        "ln_audio_clip0": seen["ln_audio"][0][:, 0],
        "audio_trans_clip0": seen["audio_trans"][0][:, 0],
        "qformer_video": seen["qformer"][0],
        "qformer_audio": seen["qformer"][1],
    }
    assert got.keys() == case.outputs.keys()
    for name, expected in case.outputs.items():
        # The vision encoder's own tolerance where its features come out bare (their deviation is 3 to 4).
        atol, rtol = (2e-4, 1e-4) if name == "vit_frame0" else (1e-4, 0)
        assert_close(got[name], expected, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}")
