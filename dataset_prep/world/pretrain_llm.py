"""The small language model of the world: a LLaMA and its sentencepiece tokenizer, trained on text only."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from chatbridge.conversation.segments import Segment, Text
from dataset_prep.world.corpus import SYMBOLS, document
from dataset_prep.world.optim import Optimizers
from dataset_prep.world.settings import LlmSettings

PROMPT, SLOT, ANSWER = 0, 1, 2
"""What a token is: of a prompt, in the place of a medium, of an answer."""


def train_tokenizer(folder: Path, settings: LlmSettings, seed: int) -> sentencepiece.SentencePieceProcessor:
    """Train the vocabulary on the world's text and write tokenizer.model and tokenizer_config.json."""
    rng = random.Random(f"{seed} tokenizer")
    lines = (piece.text for _ in range(4000) for piece in document(rng))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=settings.vocabulary,
        model_type="bpe",
        user_defined_symbols=list(SYMBOLS),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    flags = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **flags}, indent=2) + "\n")
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def build_llm(vocabulary: int, settings: LlmSettings) -> LlamaForCausalLM:
    """A LLaMA with random weights, small enough for two CPU cores."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def encode(segments: list[Segment], tokenizer: sentencepiece.SentencePieceProcessor) -> tuple[list[int], list[int]]:
    """Token ids of a document with <s> before it, and what each token is (PROMPT, SLOT, ANSWER)."""
    ids, kinds = [tokenizer.bos_id()], [PROMPT]
    for segment in segments:
        assert isinstance(segment, Text), "the corpus has words where media would be"
        tokens = tokenizer.encode(segment.text)
        ids += tokens
        kinds += [ANSWER if segment.supervised else SLOT if segment.apart else PROMPT] * len(tokens)
    return ids, kinds


class Batches:
    """An endless run of padded batches of about `tokens` tokens, documents of like length together."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor, tokens: int, weight: float, seed: str):
        self.tokenizer, self.tokens, self.weight = tokenizer, tokens, weight
        self.rng = random.Random(seed)
        self.drills = 0.0
        self.ready: list[list[tuple[list[int], list[int]]]] = []

    def _fill(self) -> None:
        pool = [encode(document(self.rng, self.drills), self.tokenizer) for _ in range(512)]
        pool.sort(key=lambda item: len(item[0]))
        batch: list[tuple[list[int], list[int]]] = []
        for item in pool:
            if batch and (len(batch) + 1) * len(item[0]) > self.tokens:
                self.ready.append(batch)
                batch = []
            batch.append(item)
        self.rng.shuffle(self.ready)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [B, L], loss weights [B, L] (answers 1, prompts a little, padding 0), slot mask [B, L]."""
        if not self.ready:
            self._fill()
        batch = self.ready.pop()
        length = max(len(ids) for ids, _ in batch)
        shape = (len(batch), length)
        ids, weights, slots = torch.full(shape, 2), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        worth = torch.tensor([self.weight, self.weight, 1.0])
        for row, (tokens, kinds) in enumerate(batch):
            kinds = torch.tensor(kinds)
            ids[row, : len(tokens)] = torch.tensor(tokens)
            weights[row, : len(tokens)] = worth[kinds]
            slots[row, : len(tokens)] = kinds == SLOT
        return ids, weights, slots


def soften(embeds: Tensor, slots: Tensor, noise: float, blend: float) -> Tensor:
    """Words in the media's place, blended within each medium and with noise, of strengths drawn for every document.

    A bridge's output is near words, never exact ones, and a row of it holds something of several: a model that has
    read only exact ones trusts them too much.

    Args:
        embeds: [B, L, D]. slots: bool [B, L], the words of media. noise: at most, in RMS of the embeddings.
        blend: the share of a row, at most, that is a random mean of its medium's words.
    """
    medium = (slots & ~nn.functional.pad(slots, (1, 0))[:, :-1]).cumsum(1)  # a medium's words stand together
    same = (medium[:, :, None] == medium[:, None]) & slots[:, None] & slots[:, :, None]
    mean = torch.rand(same.shape).pow(2) * same
    mean = mean / mean.sum(-1, keepdim=True).clamp(min=1e-6)
    share = blend * torch.rand(len(embeds), 1, 1) * slots[..., None]
    embeds = torch.lerp(embeds, mean @ embeds, share)
    scale = embeds.detach().pow(2).mean().sqrt() * noise
    level = torch.rand(embeds.shape[0], 1, 1) * scale
    return embeds + torch.randn_like(embeds) * level * slots[..., None]


def pretrain_llm(folder: Path, settings: LlmSettings, seed: int) -> dict:
    """Train tokenizer and model, write them to `folder` as transformers does; returns figures of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(folder, settings, seed)
    model = build_llm(tokenizer.vocab_size(), settings).train()
    batches = Batches(tokenizer, settings.tokens_per_step, settings.prompt_weight, f"{seed} llm")
    optimizers = Optimizers(model, settings.muon_lr, settings.adam_lr, settings.steps)
    running = 0.0
    progress = tqdm(range(settings.steps), desc="language model", unit="step", position=0, mininterval=1.0)
    for step in progress:
        # Comparing two words is the slowest to learn; once learnt on drills, it carries over to the dialogues.
        batches.drills = 0.5 if step < settings.drill_steps else settings.drills
        ids, weights, slots = batches.next()
        embeds = soften(model.get_input_embeddings()(ids), slots, settings.slot_noise, settings.slot_blend)
        logits = model(inputs_embeds=embeds, use_cache=False).logits[:, :-1]
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        counted = weights[:, 1:].flatten()
        loss = (losses * counted).sum() / counted.sum()
        loss.backward()
        optimizers.step(step)
        answers = losses.detach()[counted == 1].mean().item()
        running = answers if step == 0 else 0.95 * running + 0.05 * answers
        progress.set_postfix(answer_loss=f"{running:.3f}", refresh=False)
    model.eval().save_pretrained(folder)
    return {"answer_loss": running, "vocabulary": tokenizer.vocab_size()}
