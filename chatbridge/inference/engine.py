"""The engine: a loaded model with its tokenizer, processors and prompt format."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatbridge import register_all
from chatbridge.common.config import LoadedConfig, load_config
from chatbridge.common.schema import ConfigError
from chatbridge.contracts import Processor, Task
from chatbridge.conversation import PromptFormat
from chatbridge.inference.attachments import MediaSource, Medium, guess_modality, video_sound_problem
from chatbridge.inference.prefix_cache import PrefixCache
from chatbridge.inference.prompt import Exchange, Prompt, PromptWriter
from chatbridge.inference.settings import GenerationSettings
from chatbridge.models.attention import AttentionMaps, cross_attention
from chatbridge.processors.base import MediaError, media_errors
from chatbridge.processors.containers import NO_SOUND
from chatbridge.processors.tokenizer import Tokenizer
from chatbridge.runners.assembly import Assembly

logger = logging.getLogger("chatbridge")

DEFAULT_LENGTH = 300
"""Tokens of an answer at most, as in the original demo."""

OPTIONAL_SECTIONS = ("datasets", "validation", "run")
"""Sections of a configuration that a conversation does not need: their files may be missing."""


class Engine:
    """A model with all that a conversation needs; shared by any number of sessions and threads.

    Args:
        model: in eval mode, on its device.
        tokenizer: the language model's; processors: modality -> its processor; task: gives the prompt format.
        precision: what the configuration computes in: "no", "bf16" or "fp16".
        cache_bytes: memory for rows of media, so that the same media are encoded once.

    Attributes:
        modalities: what can be shown: those with a bridge and a processor.

    Raises:
        ValueError: for a task that has no prompt format.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        processors: Mapping[str, Processor],
        task: Task,
        precision: str = "no",
        cache_bytes: int = 256 * 2**20,
    ):
        prompt_format = getattr(task, "prompt", None)
        if not isinstance(prompt_format, PromptFormat):
            raise ValueError(
                f"{type(task).__name__} has no prompt format to hold a conversation in; "
                "load a configuration with task.name: instruction"
            )
        self.model, self.tokenizer, self.task = model.eval(), tokenizer, task
        self.processors = {name: one for name, one in processors.items() if name in model.rows}
        self.prompt_format, self.stop, self.precision = prompt_format, task.stop, precision
        rows = {name: model.rows[name](one.shape) for name, one in self.processors.items()}
        self.writer = PromptWriter(prompt_format, tokenizer, rows)
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._row_bytes, self._cache_bytes = 0, cache_bytes
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        config: str | Path | LoadedConfig,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "auto",
        options: Sequence[str] = (),
    ) -> Engine:
        """The model of a YAML, such as those in ``eval_configs/``.

        Args:
            config: the file; checkpoint: starts from this one instead of those under ``model.weights``.
            device: "auto" takes a GPU if there is one. options: overrides, "a.b=c".

        Raises:
            ValueError: a configuration or weights that cannot be used, with every problem.
        """
        assembly = Assembly(load_for_chat(config, checkpoint, options))
        where = pick_device(device)
        model = assembly.model(where).to(where)
        precision = assembly.config.run.precision() if where.type == "cuda" else "no"
        return cls(model, assembly.tokenizer, assembly.processors, assembly.task, precision)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.processors)

    def new_cache(self) -> PrefixCache:
        """An empty key-value cache, for one conversation."""
        return PrefixCache(self.model.llm, self.autocast)

    def answer_length(self, settings: GenerationSettings) -> int:
        """Tokens that an answer may have."""
        if settings.max_new_tokens is not None:
            return settings.max_new_tokens
        context = self.model.llm.context
        return DEFAULT_LENGTH if context is None else min(DEFAULT_LENGTH, context // 2)

    def prompt(self, exchanges: Sequence[Exchange], settings: GenerationSettings) -> Prompt:
        """What the model reads to answer the last of the exchanges.

        Raises:
            ValueError: when it does not fit into the context beside the answer.
        """
        context, answer = self.model.llm.context, self.answer_length(settings)
        if context is not None and answer >= context:
            raise ValueError(f"max_new_tokens ({answer}) leaves nothing of the context of {context}; lower it")
        limit = self.task.max_txt_len + (self.tokenizer.bos_id is not None)
        prompt = self.writer.fit(exchanges, limit if context is None else min(limit, context - answer))
        if prompt.dropped:
            logger.warning("the oldest %d turns do not fit into the context and were left out", prompt.dropped)
        return prompt

    def medium(self, source: MediaSource | Medium, modality: str | None = None) -> Medium:
        """The medium in a file (or bytes).

        Args:
            modality: what it is; None detects it from the content.

        Raises:
            MediaError: when it cannot be read, or is of a modality that this model lacks.
        """
        if isinstance(source, Medium):
            modality, medium = source.modality, replace(source)  # muted in one conversation, not in another
        else:
            medium = Medium.of(modality or "medium", source)
            modality = modality or guess_modality(medium.source, self.modalities)
            medium.modality = modality
        if modality not in self.processors:
            known = ", ".join(self.modalities) or "nothing"
            raise MediaError(medium.name, f"is shown as '{modality}'; this model knows {known}")
        return medium

    def video(self, source: MediaSource | Medium, sound: bool | None = None) -> list[Medium]:
        """A video, followed by its sound.

        Args:
            sound: None takes the sound if there is one that can be heard, and the model can hear; True insists. A sound
                track of which nothing can be decoded is then left out, which the video's `remark` says.

        Raises:
            MediaError: also when there is no sound to be had and `sound` is True.
        """
        picture = self.medium(source, "video")
        if sound is False or (sound is None and "audio" not in self.processors):
            return [picture]
        problem = video_sound_problem(picture.source)
        if problem is None:
            return [picture, self.medium(replace(picture, modality="audio"))]
        if sound:
            raise MediaError(picture.name, f"{problem}; leave its sound out")
        if problem != NO_SOUND:
            picture.remark = f"{picture.name} {problem}; it is shown without sound"
            logger.warning("%s", picture.remark)
        return [picture]

    def encode(self, media: Iterable[Medium]) -> list[Tensor]:
        """Rows [R, D] of each medium; cached by content.

        Raises:
            MediaError: for one that cannot be read, or whose file has changed since it was attached.
        """
        with self._lock:
            return [self._rows_of(medium) for medium in media]

    def _rows_of(self, medium: Medium) -> Tensor:
        processor = self.processors[medium.modality]
        where = f"{medium.identity}:{getattr(processor, 'config', processor)!r}"
        if where in self._rows:
            self._rows.move_to_end(where)
            return self._rows[where]
        with torch.no_grad(), self.autocast():
            rows_NRD = self.model.encode(medium.modality, self.pixels(medium)[None].to(self.device))
        rows_RD, room = rows_NRD[0].to(self.model.llm.dtype), self.writer.rows[medium.modality]
        if len(rows_RD) != room:
            raise MediaError(medium.name, f"became {len(rows_RD)} rows, where the text has room for {room}")
        self._rows[where] = rows_RD
        self._row_bytes += rows_RD.numel() * rows_RD.element_size()
        while self._row_bytes > self._cache_bytes and len(self._rows) > 1:
            _, old = self._rows.popitem(last=False)
            self._row_bytes -= old.numel() * old.element_size()
        return rows_RD

    def clear_media_cache(self) -> None:
        """Free the memory of encoded media; they are encoded again when they are needed."""
        with self._lock:
            self._rows.clear()
            self._row_bytes = 0

    def pixels(self, medium: Medium) -> Tensor:
        """What the encoder is given: float32 [T, ...], by the evaluation rules; an empty medium for a muted one."""
        processor = self.processors[medium.modality]
        if medium.muted:
            return processor.blank()
        medium.check_unchanged()
        with media_errors(medium.source):
            return processor.load(medium.source)

    def embed(self, prompt: Prompt, start: int = 0) -> Tensor:
        """Embeddings [1, L - start, D] of a prompt from a position on."""
        ids = [position if isinstance(position, int) else 0 for position in prompt.positions[start:]]
        with torch.no_grad():
            embeds_BLD = self.model.llm.embed(torch.tensor([ids], device=self.device))
        shown = [(first, medium) for first, medium in prompt.media if first + self.writer.rows[medium.modality] > start]
        for (first, _), rows_RD in zip(shown, self.encode(medium for _, medium in shown), strict=True):
            skip = max(0, start - first)
            begin = first + skip - start
            embeds_BLD[0, begin : begin + len(rows_RD) - skip] = rows_RD[skip:]
        return embeds_BLD

    def attention(self, source: MediaSource | Medium, modality: str | None = None) -> AttentionMaps:
        """What the projector's queries attend to in a medium (`chatbridge.models.attention`)."""
        medium = self.medium(source, modality)
        with self.autocast():
            return cross_attention(self.model.bridge_of(medium.modality), self.pixels(medium)[None].to(self.device))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that evaluation computes in."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


def load_for_chat(
    config: str | Path | LoadedConfig, checkpoint: str | Path | None = None, options: Sequence[str] = ()
) -> LoadedConfig:
    """A configuration whose model, tokenizer and processors exist; other files may be missing.

    Raises:
        ConfigError: with every problem.
    """
    if isinstance(config, LoadedConfig):
        if checkpoint is not None or options:
            raise ValueError("a loaded configuration takes neither checkpoint nor options any more; give its path")
        return config
    register_all()
    if checkpoint is not None:
        place = Path(checkpoint).expanduser().absolute()
        options = [*options, f"model.weights=[{json.dumps(str(place))}]"]
    loaded = load_config(config, options, defer_missing=True)
    missing = [m for m in loaded.awaited if m.key.split(".")[0] not in OPTIONAL_SECTIONS]
    if missing:
        raise ConfigError([m.problem for m in missing])
    return loaded


def pick_device(name: str | torch.device) -> torch.device:
    """A device by name; "auto" takes a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
