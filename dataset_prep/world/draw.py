"""Coloured shapes on a quiet background: single pictures, and the frames of short videos."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from dataset_prep.world.vocabulary import Visual

SIZE = 56
FRAMES = 8
"""Frames of a video. They change in four pairs, so that four frames drawn one from each quarter show it all."""
OVERSAMPLING = 4

RGB = {
    "red": (214, 36, 40),
    "orange": (245, 138, 28),
    "yellow": (246, 228, 50),
    "green": (44, 168, 62),
    "blue": (42, 92, 222),
    "purple": (148, 52, 184),
    "white": (244, 244, 244),
}

SYMMETRY = {"square": 4, "triangle": 3, "star": 5, "cross": 4, "heart": 1, "moon": 1}
"""How often a shape falls onto itself in a full turn."""


@dataclass(frozen=True)
class Pose:
    """Where a shape is: centre and radius as shares of the picture's side, angle in degrees, shown or not."""

    x: float
    y: float
    radius: float
    angle: float
    visible: bool = True


def _polar(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=-1)


def _outline(shape: str) -> np.ndarray:
    """The polygon [points, 2] of a shape of radius 1 around the origin, y downwards."""
    if shape == "square":
        return _polar(np.arange(4) * math.pi / 2 + math.pi / 4, 1.0)
    if shape == "triangle":
        return _polar(np.arange(3) * 2 * math.pi / 3, 1.1)
    if shape == "star":
        return _polar(np.arange(10) * math.pi / 5, np.where(np.arange(10) % 2, 0.45, 1.15))
    if shape == "cross":
        a, b = 0.3, 1.0
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return np.array(corners + [(-x, -y) for x, y in corners])
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=-1) / 15.5
    horn = 0.62 * math.pi
    rim, tip = np.linspace(-horn, horn, 24), -math.cos(horn)
    bay = _polar(rim[::-1], 1.0)
    bay[:, 1] = tip + (bay[:, 1] - tip) * 0.42
    lying = np.concatenate([_polar(rim, 1.0), bay])
    return lying[:, ::-1] * np.array([1.0, -1.0])


OUTLINES = {shape: _outline(shape) for shape in SYMMETRY}


def mask(shape: str, pose: Pose) -> np.ndarray:
    """How much of every pixel the shape covers: uint8 [SIZE, SIZE], smooth at its edges."""
    side = SIZE * OVERSAMPLING
    canvas = Image.new("L", (side, side), 0)
    if pose.visible:
        turn = math.radians(pose.angle)
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        points = OUTLINES[shape] @ rotation * (pose.radius * side) + np.array([pose.x, pose.y]) * side
        ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLING))


def background(rng: random.Random) -> np.ndarray:
    """A dim, slightly tinted slope with a little grain: uint8 [SIZE, SIZE, 3]."""
    level, slope = rng.uniform(15, 85), rng.uniform(0, 30)
    direction = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.5, 0.5, SIZE)
    plane = np.cos(direction) * axis[None, :] + np.sin(direction) * axis[:, None]
    tint = np.array([rng.uniform(-12, 12) for _ in range(3)])
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 3, (SIZE, SIZE, 1))
    return np.clip(level + slope * plane[..., None] + tint + grain, 0, 255).astype(np.uint8)


def tone(colour: str, rng: random.Random) -> np.ndarray:
    """A shade of the named colour: float [3] in 0..255."""
    light = rng.uniform(0.88, 1.06)
    return np.clip([light * channel + rng.uniform(-9, 9) for channel in RGB[colour]], 0, 255)


def blend(ground: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The colour laid over the ground where the cover says so: uint8 [SIZE, SIZE, 3]."""
    share = cover[..., None].astype(np.float32) / 255
    return (ground * (1 - share) + colour * share).round().astype(np.uint8)


def random_pose(rng: random.Random, tilt: float = 12) -> Pose:
    """A pose of a still picture: anywhere inside, small to large, tilted a little."""
    radius = rng.uniform(0.22, 0.32)
    room = 0.48 - radius
    return Pose(0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room), radius, rng.uniform(-tilt, tilt))


def picture(scene: Visual, rng: random.Random) -> np.ndarray:
    """A picture of the scene: uint8 [SIZE, SIZE, 3]."""
    return blend(background(rng), mask(scene.shape, random_pose(rng)), tone(scene.colour, rng))


def poses(change: str, rng: random.Random) -> list[Pose]:
    """The poses of a video's frames, FRAMES of them."""
    time = [(i - (FRAMES - 1) / 2) / (FRAMES - 1) for i in range(FRAMES)]
    centre = Pose(rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6), rng.uniform(0.23, 0.28), rng.uniform(-10, 10))
    if change in ("grows", "shrinks"):
        rate = rng.uniform(0.7, 0.95) * (1 if change == "grows" else -1)
        middle = replace(centre, radius=rng.uniform(0.22, 0.25))
        return [replace(middle, radius=middle.radius * (1 + rate * t)) for t in time]
    if change in ("rises", "sinks"):
        way = rng.uniform(0.34, 0.46) * (1 if change == "sinks" else -1)
        middle = replace(centre, y=rng.uniform(0.46, 0.54))
        return [replace(middle, y=middle.y + way * t) for t in time]
    if change == "turns":
        turn = rng.uniform(80, 120) * rng.choice((-1, 1))
        return [replace(centre, angle=centre.angle + turn * (t + 0.5)) for t in time]
    phase = rng.randrange(2)
    return [replace(centre, visible=(i // 2) % 2 == phase) for i in range(FRAMES)]


def video(scene: Visual, rng: random.Random) -> list[np.ndarray]:
    """The frames of a video of the scene, each uint8 [SIZE, SIZE, 3]."""
    ground, colour = background(rng), tone(scene.colour, rng)
    return [blend(ground, mask(scene.shape, pose), colour) for pose in poses(scene.change, rng)]
