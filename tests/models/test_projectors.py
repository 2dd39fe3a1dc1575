"""From tokens to rows: projectors, what a bridge does with them, and how old configurations and files fit."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.schema import ConfigError, bind, to_plain
from chatbridge.models import BridgeConfig, ChatBridge, MlpConfig, QFormerConfig, ResamplerConfig, to_original
from chatbridge.models.attention import cross_attention
from chatbridge.models.projectors.mlp import pooled
from chatbridge.models.projectors.resampler import ResamplerLayer
from chatbridge.runners.assembly import Assembly
from chatbridge.weights.loading import load_checkpoint
from tests import tiny, toy_model
from tests.toy_model import batch, llm, model

RESAMPLER = ResamplerConfig(num_queries=3, layers=2, heads=2)


def config(projector, name="visual", **changes):
    """The toy configuration with another projector in one bridge."""
    cfg = toy_model.config(**changes)
    cfg.bridges[name] = replace(cfg.bridges[name], perceiver=None, projector=projector)
    return cfg


class TestKeys:
    NODE = {"modalities": ["image"], "encoder": tiny.EVA}

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({}, QFormerConfig()),
            ({"perceiver": {"num_queries": 5}}, QFormerConfig(num_queries=5)),
            ({"projector": {"num_queries": 5}}, QFormerConfig(num_queries=5)),
            ({"projector": {"name": "mlp", "pool": 4}}, MlpConfig(pool=4)),
            ({"projector": {"name": "mlp", "pool": "mean"}}, MlpConfig(pool="mean")),
            ({"projector": {"name": "resampler", "layers": 1}}, ResamplerConfig(layers=1)),
        ],
    )
    def test_a_projector_under_either_name(self, keys, expected):
        bound = bind(BridgeConfig, self.NODE | keys)
        assert bound.chosen == expected
        assert bind(BridgeConfig, to_plain(bound)).chosen == expected

    @pytest.mark.parametrize(
        ("keys", "problem"),
        [
            ({"perceiver": {}, "projector": {"name": "mlp"}}, "projector and perceiver are both given"),
            ({"projector": {"name": "qfromer"}}, "no projector is called 'qfromer'; did you mean 'qformer'?"),
            ({"projector": {"name": "mlp", "pool": "max"}}, "pool is 'none', 'mean' or a number of rows, not 'max'"),
            ({"projector": {"name": "mlp", "pool": 0}}, "0 is below"),
        ],
    )
    def test_what_is_refused(self, keys, problem):
        with pytest.raises(ConfigError, match=re.escape(problem)):
            bind(BridgeConfig, self.NODE | keys)


class TestMlp:
    @pytest.mark.parametrize(
        ("count", "side", "grid"), [(4, (2, 2), (4, 4)), (6, (2, 3), (4, 6)), (2, (1, 2), (2, 8)), (1, None, (4, 4))]
    )
    def test_pooling_takes_areas_of_the_grid(self, count, side, grid):
        tokens, places = torch.randn(2, 3, 1 + grid[0] * grid[1], 5), torch.arange(1, 1 + grid[0] * grid[1])
        got = pooled(tokens, count, places.unflatten(0, grid))
        if side is None:
            expected = tokens.mean(2, keepdim=True)  # the token beside the grid counts, too
        else:
            areas = tokens[:, :, 1:].unflatten(2, (side[0], grid[0] // side[0], side[1], grid[1] // side[1]))
            expected = areas.mean((3, 5)).flatten(2, 3)
        torch.testing.assert_close(got, expected)

    def test_pooling_without_a_grid_takes_runs(self):
        tokens = torch.randn(2, 3, 6, 5)
        torch.testing.assert_close(pooled(tokens, 3), tokens.unflatten(2, (3, 2)).mean(3))

    def test_the_order_of_a_grid_is_the_encoders(self):
        """BEATs' tokens go up in pitch first: an area is of neighbouring pitches and times, not of a run."""
        tokens, places = torch.randn(1, 1, 8, 5), torch.arange(8).unflatten(0, (2, 4)).T
        low_early = tokens[0, 0, [0, 1]].mean(0)
        torch.testing.assert_close(pooled(tokens, 4, places)[0, 0, 0], low_early)


class TestResampler:
    def test_a_layer_is_that_of_the_paper(self):
        """Every latent attends to all tokens and all latents, by one set of keys and values."""
        torch.manual_seed(0)
        layer, x, tokens = ResamplerLayer(8, 2, 16), torch.randn(1, 3, 8), torch.randn(1, 5, 8)
        latents = nn.functional.layer_norm(x, (8,))
        seen = torch.cat([nn.functional.layer_norm(tokens, (8,)), latents], 1)
        reference = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        with torch.no_grad():
            reference.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key_value.weight]))
            reference.out_proj.weight.copy_(layer.output.weight)
        expected = x + reference(latents, seen, seen, need_weights=False)[0]
        expected = expected + layer.feed_forward(expected)
        torch.testing.assert_close(layer(x, tokens), expected)

    def test_heads_that_do_not_divide(self):
        with pytest.raises(ValueError, match="tokens of width 12 cannot be shared by 5 heads; set heads, or encoder_w"):
            ChatBridge(config(replace(RESAMPLER, heads=5)), llm=llm())


class TestInAModel:
    @pytest.mark.parametrize("frames", [1, 2])
    def test_rows_follow_the_mediums_shape(self, frames):
        """A picture and a video of two frames, in batches of their own, through one bridge."""
        m = ChatBridge(config(MlpConfig(hidden=8)), llm=llm()).eval()
        media, rows = torch.randn(2, frames, 3, 28, 28), 5 * frames
        assert m.rows["video"]((frames, 3, 28, 28)) == rows == m.encode("video", media).shape[1]
        b = batch()
        text, mark = b.slots_BL[:, :1], torch.full((2, rows), 0)
        slots = torch.cat([text, mark, text.expand(-1, 3)], 1)
        ids = torch.randint(3, 40, slots.shape)
        given = replace(
            b, media={"video": media}, slots_BL=slots, input_ids_BL=ids, attention_mask_BL=torch.ones_like(ids),
            labels_BL=torch.where(slots < 0, ids, -100),
        )  # fmt: skip
        assert torch.equal(m.fuse(given)[slots == 0].view(2, rows, -1), m.encode("video", media))
        m.train()(given).loss.backward()
        assert m.bridges["visual"].projector.hidden[0][0].weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("projector", [MlpConfig(), RESAMPLER, QFormerConfig(width=8, layers=1, heads=2)])
    def test_a_fresh_model_with_everything_that_a_bridge_adds(self, projector):
        cfg = config(replace(projector, encoder_width=16), freeze_perceivers=True)
        cfg.bridges["visual"] = replace(cfg.bridges["visual"], projection_scale="auto", temporal_positions=2)
        m = ChatBridge(cfg, llm=llm()).train()
        bridge = m.bridges["visual"]
        assert bridge.adapter.out_features == 16
        assert {n for n, p in bridge.named_parameters() if p.requires_grad} == {
            "temporal", "projector.projection.weight", "projector.projection.bias",
        }  # fmt: skip
        assert bridge.projector.projection.training
        assert not any(c.training for c in bridge.projector.children() if c is not bridge.projector.projection)
        assert m.encode("image", torch.randn(2, 1, 3, 28, 28)).shape[2] == 16

    def test_sharing_needs_one_kind(self):
        with pytest.raises(ValueError, match="audio and image/video cannot be shared: they are 'qformer' and 'mlp'"):
            ChatBridge(config(MlpConfig(), share_perceivers=True), llm=llm())

    def test_resamplers_share_all_but_their_latents(self):
        cfg = config(replace(RESAMPLER, encoder_width=16), share_perceivers=True)
        other = replace(RESAMPLER, encoder_width=16, num_queries=5)
        cfg.bridges["audio"] = replace(cfg.bridges["audio"], perceiver=None, projector=other)
        m = ChatBridge(cfg, llm=llm())
        visual, audio = m.bridges["visual"].projector, m.bridges["audio"].projector
        assert visual.layers is audio.layers and visual.projection is audio.projection
        assert visual.query_tokens.shape[1] == 3 and audio.query_tokens.shape[1] == 5

    def test_what_only_a_qformer_has(self):
        m = ChatBridge(config(MlpConfig()), llm=llm())
        with pytest.raises(ValueError, match="MlpProjector has no queries that look at tokens"):
            cross_attention(m.bridges["visual"], torch.randn(1, 1, 3, 28, 28))
        with pytest.raises(ValueError, match="it has no MlpProjector; keep to our format"):
            to_original(m)


class TestOldCheckpoints:
    """Until projectors were exchangeable, theirs were two modules of a bridge."""

    @staticmethod
    def old(state):
        pairs = ((".projector.projection.", ".projection."), (".projector.", ".perceiver."))
        for new, before in pairs:
            state = {name.replace(new, before): tensor for name, tensor in state.items()}
        return state

    @pytest.mark.parametrize("share", [False, True])
    def test_they_load(self, tmp_path, share):
        from safetensors.torch import save_file

        source, m = model(1, share_perceivers=share), model(2, share_perceivers=share)
        state = self.old({name: tensor.contiguous() for name, tensor in source.trainable_state().items()})
        assert {"bridges.visual.perceiver.query_tokens", "bridges.visual.projection.weight"} <= state.keys()
        save_file(state, tmp_path / "old.safetensors")
        load_checkpoint(m, tmp_path / "old.safetensors")
        again = model(3, share_perceivers=share)
        again.load_trainable(state)
        for other in (m, again):
            assert all(torch.equal(t, other.trainable_state()[n]) for n, t in source.trainable_state().items())

    def test_they_load_as_strictly_as_others(self):
        m = model()
        state = self.old(m.trainable_state())
        del state["bridges.visual.perceiver.query_tokens"]
        state["bridges.visual.perceiver.gate"] = torch.zeros(1)
        with pytest.raises(ValueError) as error:
            m.load_trainable(state)
        assert "missing (1): bridges.visual.projector.query_tokens" in str(error.value)
        assert "unexpected (1): bridges.visual.perceiver.gate" in str(error.value)


def test_videos_of_two_lengths_and_pictures_in_one_run(tmp_path):
    """Each dataset leaves as much room as the projector makes of what its own processors give."""
    tree = tiny.make_config(tmp_path, max_steps=6, loggers=[])
    media = tmp_path / "media"
    films = [{"video_id": f"film{i}", "caption": "red"} for i in range(4)]
    for i in range(4):
        (media / f"film{i}").mkdir()
        for frame in range(4):
            shutil.copy(media / f"{i}.jpg", media / f"film{i}" / f"{frame}.jpg")
    (media / "films.json").write_text(json.dumps(films))
    tree["model"]["bridges"]["vision"] |= {"projector": {"name": "mlp", "pool": 2}}
    del tree["model"]["bridges"]["vision"]["perceiver"]
    short = {
        "annotations": str(media / "films.json"),
        "kind": "tv-cap",
        "media": {"video": str(media)},
        "batch_size": 4,
    }
    long = short | {"processors": {"video": {"name": "video", "image_size": 28, "num_frames": 7}}}
    tree["datasets"] |= {"short": short, "long": long}
    tree["mixture"] = {"mode": "round_robin"}
    register_all()
    assembly = Assembly(load_config(tiny.write_yaml(tmp_path, tree)))
    model = assembly.model().train()
    found = {}
    for given in itertools.islice(assembly.batches(assembly.mixture(4, 0), 0, 1, 0, False), 4):
        assert model(given).loss.isfinite()
        found[given.dataset] = int((given.slots_BL == 0).sum()) // len(given.ids)
    assert found == {"images": 2, "short": 8, "long": 14, "sounds": 4}
