"""A metric from outside the package: words in common, as SQuAD's F1 (Rajpurkar et al. 2016)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from chatbridge.common.registry import METRICS
from chatbridge.common.schema import key
from chatbridge.evaluation.metrics import Score, normalise


@dataclass(kw_only=True)
class WordF1Config:
    articles: bool = key(False, help="count them, too")


def f1(said: list[str], wanted: list[str]) -> float:
    return 2 * (Counter(said) & Counter(wanted)).total() / max(len(said) + len(wanted), 1)


@METRICS.register("word_f1", config=WordF1Config)
class WordF1:
    def __init__(self, config):
        self.words = (lambda text: text.lower().split()) if config.articles else (lambda t: normalise(t).split())

    def __call__(self, answers):
        best = [
            max(f1(self.words(answer.prediction), self.words(reference)) for reference in answer.references)
            for answer in answers
            if answer.references
        ]
        return {"word_f1": Score(len(best), sum(best) / max(len(best), 1))}
