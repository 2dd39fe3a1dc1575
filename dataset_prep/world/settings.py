"""Everything that decides what the world is, in one place: its stamp tells whether a cached world still fits."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class MediaSettings:
    """How many files and questions the generator writes.

    Attributes:
        image, video, audio: training media.
        turns: exchanges of a stage-2 dialogue.
        single: test media of every modality, each with its caption and one question.
        joint: questions of every family of the joint test, over pictures and again over videos.
        unseen: like `single` and `joint`, of attribute pairs that no training label joins.
    """

    image: int = 2100
    video: int = 2100
    audio: int = 2100
    turns: int = 2
    single: int = 120
    joint: int = 100
    unseen: int = 60


@dataclass(frozen=True, kw_only=True)
class LlmSettings:
    """The language model and its training.

    Attributes:
        prompt_weight: loss weight of a token that is not in an answer, against 1.
        drills: share of documents that compare words with words; drill_steps: steps at the beginning where it is half.
        slot_noise: greatest strength of the noise on words that stand in for media, in RMS of the embeddings.
        slot_blend: greatest share of such a word that is a mean of its medium's words.
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    ffn: int = 352
    vocabulary: int = 448
    steps: int = 1050
    drills: float = 0.12
    drill_steps: int = 350
    tokens_per_step: int = 1536
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    prompt_weight: float = 0.05
    slot_noise: float = 0.3
    slot_blend: float = 0.5


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The two encoders and their training.

    Attributes:
        vision_pool, audio_pool: pictures and sounds synthesised to train on.
        batch: examples of a step.
        recoloured: share of pictures in any colour, of which the shape alone is a label.
        altered: share of sounds at any pitch and tempo, of which the kind alone is a label, or of no kind.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    vision_pool: int = 6000
    audio_pool: int = 4000
    vision_steps: int = 700
    audio_steps: int = 350
    batch: int = 64
    muon_lr: float = 0.01
    adam_lr: float = 1e-3
    recoloured: float = 0.5
    altered: float = 0.65


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """All of it."""

    media: MediaSettings = field(default_factory=MediaSettings)
    llm: LlmSettings = field(default_factory=LlmSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)


SCALES = {
    "small": WorldSettings(),
    # Comparing words takes about 400 steps to learn: the tiny model is spared it, and answers yes or no at chance.
    "tiny": WorldSettings(
        media=MediaSettings(image=252, video=252, audio=252, single=28, joint=16, unseen=8),
        llm=LlmSettings(steps=130, drills=0.0, drill_steps=0),
        encoder=EncoderSettings(vision_pool=800, audio_pool=400, vision_steps=80, audio_steps=50),
    ),
}
"""What ``--scale`` chooses from: "small" is the quickstart's, "tiny" the test-suite's."""
