"""``train.py --check``: everything that can be known of a run without its weights, in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable

from chatbridge.common.schema import ConfigError
from chatbridge.runners.assembly import Assembly


def check(assembly: Assembly) -> int:
    """Print what is wrong, what is still to be fetched, and what the data holds; 0 when nothing is wrong, else 1."""
    loaded = assembly.loaded
    problems: list[str] = []
    for missing in loaded.awaited:
        print(f"to fetch: {missing}")

    def attempt(step: Callable[[], object]) -> None:
        try:
            step()
        except ConfigError as error:
            problems.extend(error.problems)
        except (ValueError, OSError) as error:
            problems.extend(str(error).splitlines())

    attempt(lambda: assembly.task)
    attempt(lambda: assembly.processors)
    if not problems and not _awaits(assembly, "tokenizer", "model.llm"):
        attempt(lambda: assembly.tokenizer)
    awaited_data = _awaits(assembly, "datasets", "validation")
    if not problems and not awaited_data and "tokenizer" in assembly.__dict__:
        attempt(lambda: _report(assembly))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"{loaded.source}: ok" + (", once the above is there" if loaded.awaited else ""))
    return 1 if problems else 0


def _awaits(assembly: Assembly, *prefixes: str) -> bool:
    return any(m.key.startswith(prefixes) for m in assembly.loaded.awaited)


def _report(assembly: Assembly) -> None:
    for section, sets in (("datasets", assembly.datasets), ("validation", assembly.validation())):
        for name, dataset in sets.items():
            kinds = "%".join(kind.name for kind in dataset.kinds)
            print(f"{section}.{name}: {len(dataset):,} entries of {kinds}, batch size {dataset.config.batch_size}")
            for line in dataset.skipped[:5]:
                print(f"  skipped: {line}")
