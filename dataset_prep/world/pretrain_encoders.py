"""Pre-train the small EVA-ViT and BEATs of the world on attribute labels; the heads are thrown away."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from chatbridge.models.encoders.beats import Beats, BeatsConfig
from chatbridge.models.encoders.eva_vit import EvaVit, EvaVitConfig
from dataset_prep.world import audio_pool, vision_pool
from dataset_prep.world.optim import Optimizers
from dataset_prep.world.settings import EncoderSettings
from dataset_prep.world.vocabulary import COLOURS, PITCHES, SHAPES, SOUNDS, TEMPOS


def eva_config(settings: EncoderSettings) -> EvaVitConfig:
    """The vision encoder's configuration, as the quickstart's YAML files repeat it."""
    return EvaVitConfig(image_size=56, width=settings.width, depth=settings.layers, heads=settings.heads)


def beats_config(settings: EncoderSettings) -> BeatsConfig:
    """The audio encoder's configuration, as the quickstart's YAML files repeat it."""
    return BeatsConfig(
        patch_width=64,
        width=settings.width,
        depth=settings.layers,
        heads=settings.heads,
        ffn_width=4 * settings.width,
        conv_pos=16,
        conv_pos_groups=8,
        num_buckets=32,
        max_distance=32,
    )


def widen(encoder: nn.Module) -> None:
    """Start matrices at 1 / sqrt(inputs): the small values that huge models start from learn nothing here at first."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    if hasattr(encoder, "pos_embed"):
        nn.init.normal_(encoder.patch_embed.proj.weight, std=0.05)
        nn.init.normal_(encoder.pos_embed, std=0.3)


class Labeller(nn.Module):
    """An encoder with linear heads on its tokens, normalised as a bridge will see them.

    Args:
        sizes: of the labels' classes.
        cells: numbers that every patch tells of itself; 0 for none.
    """

    def __init__(self, encoder: nn.Module, sizes: list[int], cells: int = 0):
        super().__init__()
        widen(encoder)
        self.encoder, self.sizes = encoder, sizes
        self.head = nn.Linear(encoder.width, sum(sizes))
        self.each_head = nn.Linear(encoder.width, sum(sizes)) if cells else None
        self.cell_head = nn.Linear(encoder.width, cells) if cells else None

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised tokens [B, S, E]."""
        tokens = self.encoder(x)
        return nn.functional.layer_norm(tokens, tokens.shape[-1:])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits [B, size] for each of the sizes."""
        return self.head(self.tokens(x).mean(1)).split(self.sizes, dim=-1)


def coverage(cover: Tensor) -> Tensor:
    """What a shape covers [B, 56, 56] in 7 x 7 cells of every patch: [B, 16, 49]."""
    cells = nn.functional.avg_pool2d(cover.float().div(255).unsqueeze(1), 2)
    return nn.functional.unfold(cells, 7, stride=7).transpose(1, 2)


def vision_loss(model: Labeller, pool: vision_pool.VisionPool, rows: Tensor, recoloured: float) -> Tensor:
    """Shape and colour as classes, the pose by squares, all read from the mean token.

    Every token is asked for the classes too, and every patch for what is covered in it: without, a transformer takes
    several times as long to find out that there are shapes at all.
    """
    pixels, colours = vision_pool.colour_batch(pool, rows, recoloured)
    shapes, truth = pool.shape[rows], pool.geometry[rows]
    tokens = model.tokens(pixels)
    shape, colour, place = model.head(tokens.mean(1)).split(model.sizes, dim=-1)
    there = ~truth[:, 0].isnan()
    loss = cross_entropy(shape, shapes) + cross_entropy(colour, colours) + (place - truth)[there].pow(2).mean()
    each_shape, each_colour, each_place = model.each_head(tokens).split(model.sizes, dim=-1)
    each = cross_entropy(each_shape.flatten(0, 1), shapes.repeat_interleave(tokens.shape[1]))
    each = each + cross_entropy(each_colour.flatten(0, 1), colours.repeat_interleave(tokens.shape[1]))
    each = each + (each_place - truth[:, None])[there].pow(2).mean()
    covered = nn.functional.binary_cross_entropy_with_logits(model.cell_head(tokens[:, 1:]), coverage(pool.cover[rows]))
    return loss + 0.5 * each + covered


def audio_loss(model: Labeller, pool: audio_pool.AudioPool, rows: Tensor) -> Tensor:
    """Kind, pitch and tempo as classes, the fundamental by squares."""
    *classes, height = model(pool.fbank[rows])
    truth, octaves = pool.labels[rows], pool.octaves[rows]
    labelled = ~octaves.isnan()
    loss = sum(cross_entropy(logits, truth[:, i]) for i, logits in enumerate(classes))
    return loss + (height.squeeze(1) - octaves)[labelled].pow(2).mean()


@torch.no_grad()
def vision_accuracy(model: Labeller, held: bool, seed: int) -> dict[str, float]:
    """Shape and colour accuracy over new pictures, of named pairs that were trained or (`held`) were not."""
    pool = vision_pool.make_pool(512, random.Random(f"{seed} vision test {held}"))
    rows = torch.nonzero((pool.shape >= 0) & (pool.shape < len(SHAPES))).flatten()
    pixels, colours = vision_pool.colour_batch(pool, rows, 0.0, held)
    shape, colour, _ = model.eval()(pixels)
    return {
        "shape": (shape.argmax(-1) == pool.shape[rows]).float().mean().item(),
        "colour": (colour.argmax(-1) == colours).float().mean().item(),
    }


@torch.no_grad()
def audio_accuracy(model: Labeller, held: bool, seed: int) -> dict[str, float]:
    """Accuracy of kind, pitch and tempo over new sounds, of pairs that were trained or (`held`) were not."""
    pool = audio_pool.make_pool(256, 0.0, random.Random(f"{seed} audio test {held}"), held)
    classes = model.eval()(pool.fbank)[:3]
    hits = [(x.argmax(-1) == pool.labels[:, i]).float().mean().item() for i, x in enumerate(classes)]
    return dict(zip(("kind", "pitch", "tempo"), hits, strict=True))


def fit(model: Labeller, pool_size: int, steps: int, settings: EncoderSettings, name: str, loss_of) -> None:
    """Train on random batches of a pool; `loss_of(rows)` is the loss over examples [B]."""
    optimizers = Optimizers(model.train(), settings.muon_lr, settings.adam_lr, steps)
    running = 0.0
    progress = tqdm(range(steps), desc=name, unit="step", position=1, mininterval=1.0)
    for step in progress:
        loss = loss_of(torch.randint(pool_size, (settings.batch,)))
        loss.backward()
        optimizers.step(step)
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        progress.set_postfix(loss=f"{running:.3f}", refresh=False)


def pretrain_encoders(folder: Path, settings: EncoderSettings, seed: int) -> dict:
    """Train both encoders and write eva_vit.safetensors and beats.safetensors; returns their accuracies."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vision = Labeller(EvaVit(eva_config(settings)), [len(SHAPES) + 1, len(COLOURS) + 1, vision_pool.GEOMETRY], 49)
    pictures = vision_pool.make_pool(settings.vision_pool, random.Random(f"{seed} vision"))
    fit(
        vision, len(pictures), settings.vision_steps, settings, "vision encoder",
        lambda rows: vision_loss(vision, pictures, rows, settings.recoloured),
    )  # fmt: skip
    save_file(vision.encoder.state_dict(), folder / "eva_vit.safetensors")
    audio = Labeller(Beats(beats_config(settings)), [len(SOUNDS), len(PITCHES), len(TEMPOS), 1])
    sounds = audio_pool.make_pool(settings.audio_pool, settings.altered, random.Random(f"{seed} audio"), show=True)
    fit(
        audio, len(sounds), settings.audio_steps, settings, "audio encoder",
        lambda rows: audio_loss(audio, sounds, rows),
    )  # fmt: skip
    save_file(audio.encoder.state_dict(), folder / "beats.safetensors")
    return {
        name: {"seen": measure(model, False, seed), "unseen": measure(model, True, seed)}
        for name, model, measure in (("vision", vision, vision_accuracy), ("audio", audio, audio_accuracy))
    }
