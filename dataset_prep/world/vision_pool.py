"""Pictures to pre-train the vision encoder on: labelled ones, recoloured ones, and nameless coloured blobs.

No label ever joins a shape with a colour whose pair is kept for the test. Recoloured pictures (any colour at all)
carry the label of their shape only, blobs that of their colour only: this is what makes an encoder see the shape of
a pair that it was never shown (a prototype without it: .31, with it: .93).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from chatbridge.processors.image import CLIP_MEAN, CLIP_STD
from dataset_prep.world import draw
from dataset_prep.world.vocabulary import CHANGES, COLOURS, SHAPES, UNSEEN_VISUAL

UNKNOWN = -100
"""Label of what an example does not tell (the index that cross-entropy ignores)."""
NO_SHAPE, NO_COLOUR = len(SHAPES), len(COLOURS)
"""Classes of an empty picture, as in a video that blinks."""
GEOMETRY = 5
"""x, y, radius, and cosine and sine of the angle (times the shape's symmetry)."""


@dataclass
class VisionPool:
    """Examples in parts, so that each can be coloured anew every time: M of them.

    Attributes:
        ground: uint8 [M, 3, H, W]; cover: uint8 [M, H, W], what the shape covers.
        shape: int64 [M], the class, NO_SHAPE, or UNKNOWN for blobs.
        geometry: float [M, GEOMETRY], nan where there is none.
    """

    ground: Tensor
    cover: Tensor
    shape: Tensor
    geometry: Tensor

    def __len__(self) -> int:
        return len(self.shape)


def any_pose(rng: random.Random) -> draw.Pose:
    """A pose of a picture or of a frame in the middle of some change."""
    pose = draw.random_pose(rng)
    if rng.random() < 0.5:
        pose = rng.choice(draw.poses(rng.choice(CHANGES), rng))
    return replace(pose, visible=rng.random() > 0.04)


def geometry(shape: str, pose: draw.Pose) -> list[float]:
    """What the encoder is asked to tell of a pose, each about -1..1."""
    turn = math.radians(pose.angle) * draw.SYMMETRY[shape]
    return [4 * pose.x - 2, 4 * pose.y - 2, 8 * pose.radius - 1.8, math.cos(turn), math.sin(turn)]


def blob(rng: random.Random) -> np.ndarray:
    """The cover of a shape without a name: a random polygon."""
    side = draw.SIZE * draw.OVERSAMPLING
    canvas = Image.new("L", (side, side), 0)
    x, y, radius = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.14, 0.3)
    angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(5, 9)))
    reach = [radius * rng.uniform(0.5, 1) for _ in angles]
    points = [(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(angles, reach, strict=True)]
    ImageDraw.Draw(canvas).polygon([(px * side, py * side) for px, py in points], fill=255)
    return np.asarray(canvas.reduce(draw.OVERSAMPLING))


def make_pool(count: int, rng: random.Random) -> VisionPool:
    """`count` examples, an eighth of them blobs."""
    grounds, covers, shapes, places = [], [], [], []
    for i in range(count):
        grounds.append(draw.background(rng))
        if i % 8 == 7:
            covers.append(blob(rng))
            shapes.append(UNKNOWN)
            places.append([math.nan] * GEOMETRY)
            continue
        shape, pose = rng.choice(SHAPES), any_pose(rng)
        covers.append(draw.mask(shape, pose))
        shapes.append(SHAPES.index(shape) if pose.visible else NO_SHAPE)
        places.append(geometry(shape, pose) if pose.visible else [math.nan] * GEOMETRY)
    return VisionPool(
        torch.from_numpy(np.stack(grounds)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.stack(covers)),
        torch.tensor(shapes),
        torch.tensor(places),
    )


ALLOWED = torch.tensor(
    [[(shape, colour) not in UNSEEN_VISUAL for colour in COLOURS] for shape in SHAPES] + [[True] * len(COLOURS)]
).float()
"""[shapes + 1, colours]: the colours that may be named with a shape (last row: with a blob)."""

PALETTE = torch.tensor([draw.RGB[colour] for colour in COLOURS]).float()


def colour_batch(pool: VisionPool, rows: Tensor, recoloured: float, held: bool = False) -> tuple[Tensor, Tensor]:
    """Colour the pool's examples: pixels [B, 3, H, W], normalised as the image processor does, and colour labels [B].

    Args:
        rows: [B] which examples.
        recoloured: share of the examples with a shape that get any colour and no colour label.
        held: take the pairs kept for the test instead of all others (to measure, never to train).
    """
    shapes = pool.shape[rows]
    table = 1 - ALLOWED if held else ALLOWED
    allowed = table[torch.where(shapes < 0, NO_SHAPE, shapes)]
    allowed = torch.where(allowed.sum(1, keepdim=True) == 0, torch.ones_like(allowed), allowed)
    named = torch.multinomial(allowed, 1).squeeze(1)
    light = 0.88 + 0.18 * torch.rand(len(rows), 1)
    tone = PALETTE[named] * light + 18 * torch.rand(len(rows), 3) - 9
    free = (torch.rand(len(rows)) < recoloured) & (shapes != UNKNOWN)
    wild = torch.rand(len(rows), 3) * 255
    wild = wild * (torch.rand(len(rows), 1) * 130 + 125) / wild.amax(1, keepdim=True).clamp(min=1)
    colour = torch.where(free[:, None], wild, tone).clamp(0, 255)
    share = pool.cover[rows].float().div(255).unsqueeze(1)
    pixels = pool.ground[rows].float() * (1 - share) + colour[:, :, None, None] * share
    pixels = (pixels / 255 - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    labels = torch.where(shapes == NO_SHAPE, NO_COLOUR, torch.where(free, UNKNOWN, named))
    return pixels, labels
