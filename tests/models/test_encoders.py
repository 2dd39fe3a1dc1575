"""Encoders at toy size: published files of every shape, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chatbridge.common.registry import ENCODERS
from chatbridge.models.encoders import BeatsConfig, EvaVitConfig

EVA = EvaVitConfig(image_size=28, width=12, depth=2, heads=2)
BEATS = BeatsConfig(patch_width=6, width=8, depth=2, heads=2, ffn_width=16, conv_pos=5, conv_pos_groups=2)
INPUT = {EvaVitConfig: (3, 3, 28, 28), BeatsConfig: (3, 32, 48)}

CFG = {
    "input_patch_size": 16,
    "embed_dim": 6,
    "encoder_embed_dim": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_embed_dim": 16,
    "conv_pos": 5,
    "conv_pos_groups": 2,
    "num_buckets": 320,
    "max_distance": 800,
    "deep_norm": True,
    "layer_norm_first": False,
    "encoder_layerdrop": 0.05,
    "finetuned_model": False,
}


@pytest.mark.parametrize("config", [EVA, BEATS], ids=["eva_vit", "beats"])
class TestEvery:
    def test_own_file_goes_round(self, config, tmp_path):
        from safetensors.torch import save_file

        source = ENCODERS.build(config).eval()
        save_file(source.state_dict(), tmp_path / "encoder.safetensors")
        again = ENCODERS.build(replace(config, weights=str(tmp_path / "encoder.safetensors"))).eval()
        x = torch.randn(INPUT[type(config)])
        assert torch.equal(source(x), again(x))

    def test_another_size_is_refused(self, config, tmp_path):
        from safetensors.torch import save_file

        save_file(ENCODERS.build(config).state_dict(), tmp_path / "encoder.safetensors")
        wider = replace(config, width=24, weights=str(tmp_path / "encoder.safetensors"))
        with pytest.raises(ValueError, match="encoder.safetensors' does not fit this architecture: .*wrong shape"):
            ENCODERS.build(wider)

    def test_heads_that_do_not_divide(self, config):
        with pytest.raises(ValueError, match="not a multiple of heads"):
            replace(config, heads=5)


class TestEvaFiles:
    def save(self, state, tmp_path, **changes):
        torch.save(state, tmp_path / "eva.pth")
        return ENCODERS.build(replace(EVA, weights=str(tmp_path / "eva.pth"), **changes)).eval()

    @pytest.mark.parametrize("prefix", ["", "visual.", "visual.trunk."])
    def test_extra_block_norm_and_head(self, tmp_path, prefix):
        """eva_vit_g.pth holds 40 blocks, a final norm and a head, of which 39 blocks are used."""
        deep = ENCODERS.build(replace(EVA, depth=3)).eval()
        state = {prefix + k: v for k, v in deep.state_dict().items()}
        state |= {prefix + "norm.weight": torch.ones(12), prefix + "head.weight": torch.zeros(4, 12)}
        if prefix:
            state |= {"logit_scale": torch.ones(()), "text.token_embedding.weight": torch.zeros(2, 2)}
        model, x = self.save(state, tmp_path), torch.randn(2, 3, 28, 28)
        seen = []
        deep.blocks[1].register_forward_hook(lambda _m, _a, out: seen.append(out))
        deep(x)
        assert torch.equal(model(x), seen[0])

    def test_too_few_blocks(self, tmp_path):
        with pytest.raises(ValueError, match="hold 2 blocks and depth is 3"):
            self.save(ENCODERS.build(EVA).state_dict(), tmp_path, depth=3)

    def test_missing_tensor_is_named(self, tmp_path):
        state = ENCODERS.build(EVA).state_dict()
        del state["blocks.1.attn.q_bias"]
        with pytest.raises(ValueError, match=r"missing \(1\): blocks.1.attn.q_bias"):
            self.save(state, tmp_path)

    def test_another_image_size_is_resampled(self, tmp_path):
        source = ENCODERS.build(EVA).state_dict()
        model = self.save(source, tmp_path, image_size=56)
        assert model.pos_embed.shape == (1, 17, 12)
        assert torch.equal(model.pos_embed[:, 0], source["pos_embed"][:, 0])

    def test_half_file_in_an_fp32_encoder(self, tmp_path):
        state = {k: v.half() for k, v in ENCODERS.build(EVA).state_dict().items()}
        assert all(p.dtype == torch.float32 for p in self.save(state, tmp_path).parameters())


class TestBeatsFiles:
    def save(self, payload, tmp_path, **changes):
        torch.save(payload, tmp_path / "beats.pt")
        return ENCODERS.build(replace(BEATS, weights=str(tmp_path / "beats.pt"), **changes))

    def test_published_form(self, tmp_path):
        source = ENCODERS.build(BEATS)
        state = source.state_dict() | {"predictor.weight": torch.zeros(527, 8)}
        name = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
        state[name.format(1)] = state[name.format(0)].clone()
        model = self.save({"cfg": CFG, "model": state}, tmp_path)
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
        assert name.format(1) not in model.state_dict(), "the shared table is written once"

    @pytest.mark.parametrize(("name", "value"), [("layer_norm_first", True), ("gru_rel_pos", False)])
    def test_foreign_architectures(self, tmp_path, name, value):
        with pytest.raises(ValueError, match=f"{name}={value} are not supported"):
            self.save({"cfg": CFG | {name: value}, "model": ENCODERS.build(BEATS).state_dict()}, tmp_path)

    def test_sizes_that_shapes_do_not_show(self, tmp_path):
        """`max_distance` and the number of heads leave no trace in some shapes: the file's cfg tells."""
        with pytest.raises(ValueError, match="max_distance is 128 there and 800 here"):
            self.save({"cfg": CFG | {"max_distance": 128}, "model": ENCODERS.build(BEATS).state_dict()}, tmp_path)
