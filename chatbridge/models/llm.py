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
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PretrainedConfig, StoppingCriteria, StoppingCriteriaList
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from chatbridge.common.registry import LLMS, nearest
from chatbridge.common.schema import key
from chatbridge.models.language_model_checks import GENERATING, PACKING, READING, STREAMING, faults
from chatbridge.models.language_model_folder import build, end_tokens, load_folder, settings_of
from chatbridge.weights import DTYPES

Stop = Callable[[list[int]], bool]
"""Told a row's new ids so far, says whether that row is finished."""


@dataclass(kw_only=True)
class CausalLMConfig:
    path: str = key(help="folder of the model (config.json, weights, tokenizer)", path=True)
    dtype: str = key("float32", help="precision of the frozen weights", choices=tuple(DTYPES))
    attention: str = key("sdpa", help="attention implementation, by transformers' names")
    random_weights: bool = key(False, help="read only config.json and leave the weights random (tests, dry runs)")
    gradient_checkpointing: bool = key(
        False, resume="free", help="recompute activations in the backward pass to save memory"
    )

    def __post_init__(self) -> None:
        known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
        if self.attention not in known and "/" not in self.attention:  # kernels of the hub are owner/name
            raise ValueError(
                f"attention: no implementation is called '{self.attention}'; {nearest(self.attention, known)}"
            )


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
        if model is None:
            model = load_folder(Path(config.path), DTYPES[config.dtype], config.attention, config.random_weights)
        self.model = model
        self.width = self.model.get_input_embeddings().embedding_dim
        self.vocab_size = self.model.get_input_embeddings().num_embeddings
        self.eos_ids = end_tokens(config.path, self.model.config, self.vocab_size)
        # What a folder's generation_config.json says about sampling must not leak into evaluation.
        self.model.generation_config = GenerationConfig()
        self.model.requires_grad_(False)
        self._tried: dict[str, str] = {}
        self.gradient_checkpointing = config.gradient_checkpointing
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.eval()
        if self._in_place():
            self.try_out(READING, GENERATING)
            self.require(READING)

    @classmethod
    def from_config(
        cls, config: PretrainedConfig | dict[str, Any], dtype: str = "float32", empty: bool = False
    ) -> CausalLM:
        """Random weights (or `empty` ones), from a transformers configuration or its dictionary with ``model_type``."""
        if isinstance(config, dict):
            config = settings_of(config, "a dictionary")
        model = build(config, config.model_type, DTYPES[dtype], empty=empty)
        return cls(CausalLMConfig(path="", dtype=dtype), model)

    def portable_config(self, path: str) -> CausalLMConfig:
        """This model's configuration where `path` holds its config.json and the weights come from elsewhere."""
        name = str(self.dtype).removeprefix("torch.")
        return replace(self.config, path=path, dtype=name, random_weights=True)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

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

    def block_mask(self, samples_BL: Tensor) -> Any:
        """What `logits_at` takes as mask to keep packed samples apart: each position sees its own sample up to itself.

        It is one mask [B, 1, L, L], or one for each kind of layer (full, with a window, chunked).

        Args:
            samples_BL: the number of the sample at each position, -1 at padding (which sees padding, lest a row of
                the softmax be empty).

        Raises:
            ValueError: for a model, or an attention implementation, that cannot keep them apart.
        """
        self.require(PACKING)
        index_L = torch.arange(samples_BL.shape[1], device=samples_BL.device)
        begins_BL = F.pad(samples_BL[:, 1:] != samples_BL[:, :-1], (1, 0), value=True)
        positions_BL = index_L - torch.where(begins_BL, index_L, 0).cummax(1).values
        make = getattr(self.model, "create_masks_for_generate", create_masks_for_generate)  # some have their own
        return make(
            config=self.model.config,
            inputs_embeds=torch.empty(*samples_BL.shape, 0, dtype=self.dtype, device=samples_BL.device),
            attention_mask=None,
            past_key_values=None,
            position_ids=positions_BL,
        )

    def logits_at(self, embeds_BLD: Tensor, mask: Any, positions_BL: Tensor, keep_BL: Tensor) -> Tensor:
        """Logits [K, V], fp32, at the K positions where `keep_BL` is true, in row-major order.

        The head is the largest matrix of a small model and its output the largest tensor of any: hidden states are
        cut down to these positions on their way into it, and what else the model does to logits (scales, caps) it
        does to these alone.

        Args:
            mask: [B, L], or what `block_mask` gives.

        Raises:
            ValueError: for a model whose logits would be others than those of its plain forward pass.
        """
        self.require(READING)

        def cut(_: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
            return given[0][keep_BL]

        hook = self.model.get_output_embeddings().register_forward_pre_hook(cut)
        try:
            inputs = {"inputs_embeds": embeds_BLD, "attention_mask": mask, "position_ids": positions_BL}
            logits_KV = self.model(**inputs, use_cache=False).logits
        finally:
            hook.remove()
        return logits_KV.float()

    def try_out(self, *uses: str) -> None:
        """Compare uses of the model (`language_model_checks`) with its plain forward pass, each once."""
        new = [use for use in uses if use not in self._tried]
        self._tried |= dict.fromkeys(new, "")  # while they are being tried
        self._tried |= faults(self, new) if new else {}

    def _in_place(self) -> bool:
        """Whether the model is where it will compute: else it is tried when it is there, and first used."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        huge = sum(tensor.numel() for tensor in tensors) > 10**9  # on its way through host memory, probably
        return len({tensor.device for tensor in tensors}) == 1 and not (huge and tensors[0].device.type == "cpu")

    def require(self, *uses: str) -> None:
        """Raise ValueError, naming the model and what it gets wrong, unless it is fit for these uses."""
        CausalLM.try_out(self, *uses)  # as it is written: sharded, `self.try_out` is more than that
        for use in uses:
            if self._tried[use]:
                settings = self.model.config
                kind = f"{settings.model_type}, attention {settings._attn_implementation}"
                raise ValueError(f"language model '{self.config.path}' ({kind}): {self._tried[use]}")

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
        self.require(READING, GENERATING)
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
        self.require(STREAMING)
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
