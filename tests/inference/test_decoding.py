"""Tokens one by one: the same as transformers' own, and what may be shown of them."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from chatbridge.conversation import PromptFormat, clean_answer
from chatbridge.conversation.stop import StopOnText
from chatbridge.inference import ChatSession, GenerationSettings
from chatbridge.inference.decoding import DecodingTask, beam_search, decode_tokens
from chatbridge.inference.prefix_cache import PrefixCache
from chatbridge.inference.text_stream import IncrementalDecoder, StreamedText
from chatbridge.models import CausalLM
from tests.inference.tools import make_engine, write_media
from tests.toy_model import llm

LENGTH = 12
SETTINGS = {
    "greedy": {},
    "sampling": {"temperature": 1.0},
    "temperature": {"temperature": 2.5},
    "top_p": {"temperature": 1.5, "top_p": 0.6},
    "top_k": {"temperature": 1.5, "top_k": 4},
    "all": {"temperature": 1.2, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.7},
    "penalty": {"repetition_penalty": 2.0},
    "beams": {"num_beams": 3},
    "beams that sample": {"num_beams": 2, "temperature": 1.5, "top_p": 0.9},
}


@pytest.fixture(scope="module")
def language():
    torch.manual_seed(0)
    return llm(max_position_embeddings=64)


def prompt_of(language, ids):
    embeds_BLD = language.embed(torch.tensor([ids]))
    return list(ids), lambda start: embeds_BLD[:, start:]


def decode(language, ids, settings, cache=None, most=LENGTH, seed=5):
    positions, embed = prompt_of(language, ids)
    cache = cache or PrefixCache(language)
    cache.keep(positions)
    task = DecodingTask(cache=cache, positions=positions, embed=embed, settings=settings, max_tokens=most, seed=seed)
    return beam_search(task, lambda _: False) if settings.num_beams > 1 else list(decode_tokens(task))


def generate(language, ids, settings, most=LENGTH, seed=5):
    """The same by transformers' own ``generate``."""
    embeds_BLD = language.embed(torch.tensor([ids]))
    given = {"repetition_penalty": settings.repetition_penalty, "num_beams": settings.num_beams}
    if settings.samples:
        given |= {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
        given |= {"top_k": settings.top_k}
    row = language.generate(embeds_BLD, torch.ones(1, len(ids)), most, seed=seed, **given)[0].tolist()
    return language.trim(row)


@pytest.mark.parametrize("settings", [GenerationSettings(**s) for s in SETTINGS.values()], ids=list(SETTINGS))
@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_tokens_as_generate(language, settings, seed):
    prompts = ([1, 7, 9, 3, 20, 31], [1, 5], [1, 8, 8])
    got = [decode(language, prompt, settings, seed=seed) for prompt in prompts]
    assert got == [generate(language, prompt, settings, seed=seed) for prompt in prompts]
    assert sum(map(len, got)) > 5


def test_the_end_token_ends_it(language):
    free = decode(language, [1, 7, 9], GenerationSettings())
    language.eos_ids = [free[3]]
    try:
        assert decode(language, [1, 7, 9], GenerationSettings()) == free[: free.index(free[3])]
    finally:
        language.eos_ids = [2]


@pytest.mark.parametrize("name", ["greedy", "all", "beams"])
def test_a_cache_with_a_common_beginning_changes_nothing(language, name):
    settings = GenerationSettings(**SETTINGS[name])
    cache = PrefixCache(language)
    for prompt in ([1, 7, 9, 3], [1, 7, 9, 3, 20, 31, 8], [1, 7, 4], [1, 7, 4], [6, 7, 4]):
        assert decode(language, prompt, settings, cache) == decode(language, prompt, settings)


def test_the_cache_keeps_what_is_common(language):
    cache = PrefixCache(language)
    decode(language, [1, 7, 9, 3], GenerationSettings(), cache, most=1)
    assert cache.positions == [1, 7, 9, 3]
    assert cache.keep([1, 7, 9, 3, 4]) == 4
    assert cache.keep([1, 7, ("image:abc", 0), 3]) == 2
    assert cache.positions == [1, 7]
    assert cache.keep([1, 7]) == 1  # the last one is read again: the answer's first token is predicted there


def test_layers_that_forget_are_never_cut_back():
    """With a sliding window, keys that left it cannot be brought back: everything is read anew."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, sliding_window=4, initializer_range=0.4,
    )  # fmt: skip
    language = CausalLM.from_config(config)
    cache, settings = PrefixCache(language), GenerationSettings()
    first = decode(language, [1, 7, 9, 3, 5, 8, 9], settings, cache)
    grown = [1, 7, 9, 3, 5, 8, 9, *first, 11, 12]
    for prompt in (grown, [1, 7, 9, 3, 5, 30, 31], [1, 7, 9, 3, 5, 30, 31]):
        assert decode(language, prompt, settings, cache) == generate(language, prompt, settings)


def test_the_language_model_of_a_configuration(tmp_path):
    """Through the whole stack: a session's greedy answer is what the model's own ``generate`` gives."""
    engine, files = make_engine(tmp_path), write_media(tmp_path / "files")
    session = ChatSession(engine, GenerationSettings(max_new_tokens=LENGTH))
    reply = session.say("what?", media=[files["loud.mp4"], files["b.png"]])
    session.turns[0].answer = None
    prompt = engine.prompt(session.turns, session.settings)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    ids = plain.generate(inputs_embeds=engine.embed(prompt), max_new_tokens=LENGTH, do_sample=False)[0].tolist()
    assert reply.token_ids == engine.model.llm.trim(ids)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.2}, {"top_k": -1},
        {"repetition_penalty": 0}, {"num_beams": 0}, {"max_new_tokens": 0}, {"seed": -1}, {"temperature": 1e-320},
        {"temperature": 1e300}, {"temperature": float("inf")}, {"temperature": "hot"}, {"temperature": 10**400},
        {"top_p": 1e-320}, {"top_p": float("nan")}, {"repetition_penalty": 1e-320}, {"repetition_penalty": 1e300},
        {"top_k": 10**400}, {"top_k": 1.5}, {"num_beams": 1000}, {"num_beams": True}, {"max_new_tokens": 10**400},
        {"max_new_tokens": "5"}, {"seed": 2**63}, {"seed": -(10**400)},
    ],
)  # fmt: skip
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is .*take a value from"):
        GenerationSettings(**wrong)


@pytest.mark.parametrize("temperature", [0.001, 100.0])
@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_settings_at_the_ends_of_their_range_can_be_drawn_from(language, temperature, penalty):
    settings = GenerationSettings(temperature=temperature, top_p=1e-6, repetition_penalty=penalty, seed=1)
    assert decode(language, [1, 7, 9, 3], settings)


class Bytes:
    """The finest tokenizer there is: one id per byte."""

    def decode(self, ids, skip_special=True):
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("seed", range(3))
def test_long_texts_are_decoded_by_their_ends(tokenizer, seed):
    rng = random.Random(seed)
    words = ["the river", "naïve 😀😀", "漢字", " ", "\n\n", "a", "###", "🏳️‍🌈", "  two  ", "ünïcödé", "."]
    text = "".join(rng.choice(words) for _ in range(200))
    random_ids = [rng.randrange(3, tokenizer.vocab_size) for _ in range(300)]
    for way, ids in ((tokenizer, tokenizer.encode(text)), (Bytes(), list(text.encode())), (tokenizer, random_ids)):
        growing, longest = IncrementalDecoder(way), 0
        for number, token in enumerate(ids, 1):
            assert growing.add(token) == way.decode(ids[:number])
            longest = max(longest, number - growing._start)
        assert longest < 5 * IncrementalDecoder.WINDOW < len(ids)


def show(tokenizer, ids, format, stop=()):
    """Pieces as they would be shown, until a stop text."""
    text, pieces = StreamedText(tokenizer, format, stop), []
    for token in ids:
        pieces.append(text.add(token))
        if text.stopped:
            break
    pieces.append(text.end())
    return pieces, text


ANSWERS = [
    "a dog###", "a dog\n###", " a dog.### Human: more", "naïve 😀 ###", "###", "", "a # and ## again",
    "two\nlines\n\n###", "Assistant: a dog###", "Ass", "Assistant", "the Assistant: role##", "#", "  \n ",
    "ends in spaces   ", "漢字\n",
]  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_shown_is_the_answer_and_never_more(answer, tokenizer):
    format = PromptFormat()
    for way, ids in ((Bytes(), list(answer.encode())), (tokenizer, tokenizer.encode(answer))):
        pieces, text = show(way, ids, format)
        expected = clean_answer(way.decode(text.ids), format)
        assert "".join(pieces) == text.text == expected
        so_far = ""
        for piece in pieces:
            so_far += piece
            assert expected.startswith(so_far)
        rule = StopOnText(format.stop, way)
        first = next((n for n in range(1, len(ids) + 1) if rule(ids[:n])), None)
        assert text.stopped == (first is not None) and len(text.ids) == (first or len(ids))


def test_beginnings_of_stop_texts_are_held_back_until_they_turn_out_to_be_none():
    pieces, _ = show(Bytes(), b"a #b <end> c", PromptFormat(), stop=["<end>!"])
    assert pieces == ["a", "", "", " #b", "", "", "", "", "", "", " <end>", " c", ""]


def test_the_text_of_an_unfinished_character_is_held_back():
    pieces, text = show(Bytes(), "é😀".encode(), PromptFormat())
    assert pieces == ["", "é", "", "", "", "😀", ""]
    broken, text = show(Bytes(), "x😀".encode()[:-1], PromptFormat())
    assert "".join(broken) == text.text == "x\N{REPLACEMENT CHARACTER}"
