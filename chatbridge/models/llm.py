"""The frozen language model: any causal LM that transformers loads from a folder.

Shape letters: `chatbridge.common.batch`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PretrainedConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from chatbridge.common.registry import LLMS
from chatbridge.common.schema import key
from chatbridge.weights import DTYPES, WeightsError, empty_weights, load_language_model, on_meta, open_weights
from chatbridge.weights.files import shorten
from chatbridge.weights.filling import check_finite
from chatbridge.weights.language_model import read_config
from chatbridge.weights.readers import plan_language_model

Stop = Callable[[list[int]], bool]
"""Told a row's new ids so far, says whether that row is finished."""


@dataclass(kw_only=True)
class CausalLMConfig:
    path: str = key(help="folder of the model (config.json, weights, tokenizer)", path=True)
    dtype: str = key("float32", help="precision of the frozen weights", choices=tuple(DTYPES))
    attention: str = key("sdpa", help="attention implementation, by transformers' names")
    random_weights: bool = key(False, help="read only config.json and leave the weights random (tests, dry runs)")
    gradient_checkpointing: bool = key(False, help="recompute activations in the backward pass to save memory")


@LLMS.register("causal_lm", config=CausalLMConfig)
class CausalLM(nn.Module):
    """A transformers model, frozen and always in eval mode.

    Attributes:
        model: the transformers model.
        width: D. vocab_size: V.
        eos_ids: ids that end a text.

    Raises:
        ValueError: when the folder holds no causal language model.
    """

    def __init__(self, config: CausalLMConfig, model: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.model = model if model is not None else _load(config)
        self.width = self.model.get_input_embeddings().embedding_dim
        self.vocab_size = self.model.get_input_embeddings().num_embeddings
        self.eos_ids = _eos_ids(self.model)
        # What a folder's generation_config.json says about sampling must not leak into evaluation.
        self.model.generation_config = GenerationConfig()
        self.model.requires_grad_(False)
        self.gradient_checkpointing = config.gradient_checkpointing
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.eval()

    @classmethod
    def from_config(cls, config: PretrainedConfig | dict[str, Any], dtype: str = "float32") -> CausalLM:
        """Random weights, from a transformers configuration (or its dictionary with ``model_type``)."""
        if isinstance(config, dict):
            config = AutoConfig.for_model(**config)
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
        return cls(CausalLMConfig(path="", dtype=dtype), model)

    def portable_config(self, path: str) -> CausalLMConfig:
        """This model's configuration where `path` holds its config.json and the weights come from elsewhere."""
        name = str(self.dtype).removeprefix("torch.")
        return replace(self.config, path=path, dtype=name, random_weights=True)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    def train(self, mode: bool = True) -> CausalLM:
        """A frozen model has no training mode: its dropout, if any, must never act.

        Only the mark that lets transformers recompute a layer is set; the modules inside stay in eval mode.
        """
        super().train(False)
        if self.gradient_checkpointing:
            for module in self.model.modules():
                if getattr(module, "gradient_checkpointing", False) is True:
                    module.training = mode
        return self

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Token embeddings [B, L, D]."""
        return self.model.get_input_embeddings()(ids_BL)

    @torch.no_grad()
    def embedding_norm(self) -> float:
        """Mean length of a token's embedding, over an even sample of the vocabulary."""
        embedding = self.model.get_input_embeddings()
        ids = torch.arange(0, self.vocab_size, max(1, self.vocab_size // 2048), device=embedding.weight.device)
        return float(embedding(ids).float().norm(dim=-1).mean())

    def block_mask(self, samples_BL: Tensor) -> Tensor:
        """Attention mask [B, 1, L, L] that keeps packed samples apart: each position sees its own sample up to itself.

        Args:
            samples_BL: the number of the sample at each position, -1 at padding (which sees padding, lest a row of
                the softmax be empty).

        Raises:
            ValueError: for attention implementations that take no such mask.
        """
        kind = self.model.config._attn_implementation
        if kind not in ("sdpa", "eager"):
            raise ValueError(f"packed batches need model.llm.attention: sdpa (or eager), not '{kind}'; or do not pack")
        length = samples_BL.shape[1]
        causal_LL = torch.ones(length, length, dtype=torch.bool, device=samples_BL.device).tril()
        seen_BLL = (samples_BL[:, :, None] == samples_BL[:, None, :]) & causal_LL
        if kind == "sdpa":
            return seen_BLL[:, None]
        # The plain implementation adds the mask to the scores.
        zero = torch.zeros((), dtype=self.dtype, device=samples_BL.device)
        return torch.where(seen_BLL[:, None], zero, torch.finfo(self.dtype).min)

    def logits_at(self, embeds_BLD: Tensor, mask: Tensor, positions_BL: Tensor, keep_BL: Tensor) -> Tensor:
        """Logits [K, V], fp32, at the K positions where `keep_BL` is true, in row-major order.

        The head is the largest matrix of a small model and its output the largest tensor of any: it is computed at
        these positions only. `mask` is [B, L], or what `block_mask` gives.
        """
        inputs = {"inputs_embeds": embeds_BLD, "attention_mask": mask, "position_ids": positions_BL}
        if _head_is_plain(self.model.config):
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
            return self.model.get_output_embeddings()(hidden[keep_BL]).float()
        # Some families scale or cap their logits: let the model do it, at every column that any row needs.
        columns = keep_BL.any(0).nonzero().squeeze(1)
        logits = self.model(**inputs, use_cache=False, logits_to_keep=columns).logits
        return logits[keep_BL[:, columns]].float()

    @torch.no_grad()
    def generate(
        self,
        embeds_BLD: Tensor,
        mask_BL: Tensor,
        max_new_tokens: int,
        num_beams: int = 1,
        do_sample: bool = False,
        top_p: float = 1.0,
        temperature: float = 1.0,
        stop: Stop | None = None,
        seed: int | None = None,
        streamer: Any = None,
        past: DynamicCache | None = None,
        **options: Any,
    ) -> Any:
        """What transformers' ``generate`` returns for a left-padded prompt of embeddings.

        Args:
            stop: asked after every token, row by row; finished rows are filled with the first of `eos_ids`.
            seed: of the sampling; the caller's random state is left as it was.
            past: holds the prompt's first positions already, for every row and beam, and is written to. `embeds_BLD`
                holds the whole prompt nevertheless.
            options: more of transformers' generation settings.
        """
        sampling = {"top_p": top_p, "temperature": temperature, "top_k": 0} if do_sample else {}
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=do_sample,
            eos_token_id=self.eos_ids or None,
            pad_token_id=self.eos_ids[0] if self.eos_ids else 0,
            **(sampling | options),
        )
        criteria = StoppingCriteriaList([PerRowStop(stop, sticky=num_beams == 1)] if stop else [])
        devices = [embeds_BLD.device] if embeds_BLD.device.type == "cuda" else []
        with torch.random.fork_rng(devices) if seed is not None else nullcontext():
            if seed is not None:
                torch.manual_seed(seed)
            return self.model.generate(
                inputs_embeds=embeds_BLD,
                attention_mask=mask_BL,
                generation_config=settings,
                stopping_criteria=criteria,
                streamer=streamer,
                past_key_values=past,
            )

    def new_cache(self) -> DynamicCache:
        """An empty cache for `step`."""
        return DynamicCache(config=self.model.config)

    @torch.no_grad()
    def step(self, cache: DynamicCache, ids_BL: Tensor | None = None, embeds_BLD: Tensor | None = None) -> Tensor:
        """Logits [B, V], fp32, of what follows the positions given, which follow those in `cache` and enter it."""
        out = self.model(
            input_ids=ids_BL, inputs_embeds=embeds_BLD, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return out.logits[:, -1].float()

    @property
    def context(self) -> int | None:
        """How many positions the model was made for; None where its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def trim(self, ids: list[int], stop: Stop | None = None) -> list[int]:
        """One generated row without its end token and what fills the row after it."""
        for position, token in enumerate(ids):
            if token in self.eos_ids:
                return ids[:position]
            if not self.eos_ids and stop is not None and stop(ids[: position + 1]):
                return ids[: position + 1]
        return ids


class PerRowStop(StoppingCriteria):
    """Ends each row when the callback says so of its new ids.

    Args:
        sticky: rows keep their place (no beam search), so that a finished one need not be asked again.
    """

    def __init__(self, stop: Stop, sticky: bool):
        self.stop = stop
        self.done: dict[int, bool] | None = {} if sticky else None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        rows = input_ids.tolist()  # only new ids: the prompt was given as embeddings
        if self.done is None:
            finished = [self.stop(row) for row in rows]
        else:
            for i, row in enumerate(rows):
                if not self.done.get(i):
                    self.done[i] = self.stop(row)
            finished = [self.done[i] for i in range(len(rows))]
        return torch.tensor(finished, dtype=torch.bool, device=input_ids.device)


def _load(config: CausalLMConfig) -> nn.Module:
    """The folder's model. On the meta device, or with `random_weights`, only its architecture."""
    folder = Path(config.path)
    read_config(folder)
    kwargs = {"dtype": DTYPES[config.dtype], "attn_implementation": config.attention}
    try:
        settings = AutoConfig.from_pretrained(folder)
        with empty_weights(not config.random_weights):
            model = AutoModelForCausalLM.from_config(settings, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(_cannot_load(folder, error)) from error
    if config.random_weights or on_meta():
        return model
    model.tie_weights()  # building without memory takes shared tensors apart
    source = open_weights(folder)
    if settings.model_type in OWN_NAMES or plan_language_model(model, source, f"language model '{folder}'")[0].ok:
        load_language_model(model, source)
    else:
        model = _load_renamed(folder, kwargs)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


OWN_NAMES = ("llama",)
"""Families whose files name tensors as their modules do, so that a difference is an error of the files."""


def _load_renamed(folder: Path, kwargs: dict[str, Any]) -> nn.Module:
    """A family whose files transformers renames while it reads them; what it could not place is an error here too."""
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(_cannot_load(folder, error)) from error
    wrong = [f"{kind.replace('_keys', '')}: {shorten(map(str, told[kind]))}" for kind in FAULTS if told.get(kind)]
    if wrong:
        raise WeightsError(f"language model '{folder}' does not fit its config.json: {'; '.join(wrong)}")
    for name, parameter in model.named_parameters():
        check_finite(name, parameter.detach(), f"language model '{folder}'")
    return model


FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def _cannot_load(folder: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return f"cannot load a causal language model from '{folder}': {reason}"


def _eos_ids(model: nn.Module) -> list[int]:
    settings = getattr(model, "generation_config", None)
    eos = getattr(settings, "eos_token_id", None)
    if eos is None:
        eos = getattr(model.config, "eos_token_id", None)
    if eos is None:
        return []
    return list(eos) if isinstance(eos, (list, tuple)) else [int(eos)]


def _head_is_plain(config: PretrainedConfig) -> bool:
    """Whether logits are the head's output and nothing more (Gemma caps them, Cohere and Granite scale them)."""
    scales = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")]
    return all(scale in (None, 1, 1.0) for scale in scales)
