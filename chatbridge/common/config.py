"""One YAML per run: read by OmegaConf, bound to typed dataclasses, checked before anything is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chatbridge.common.config_files import ConfigTree, read_config_file
from chatbridge.common.plugins import import_plugins
from chatbridge.common.registry import DATASETS, MODELS, PROCESSORS, RUNNERS, TASKS
from chatbridge.common.schema import Binder, ConfigError, MissingPath, join, key, to_plain
from chatbridge.common.secrets import secrets_in


@dataclass(kw_only=True)
class MixtureConfig:
    """How the training datasets share the steps."""

    mode: str = key(
        "random",
        choices=("random", "round_robin", "mixed"),
        help="a step reads one dataset, drawn by weight (random) or in turn (round_robin), or the dataset of every "
        "sample is drawn by weight (mixed; a weight of null is then the size in samples)",
    )
    batch_size: int | None = key(
        None,
        low=1,
        high=1 << 16,
        unit="samples",
        help="mixed: per batch over all ranks; elsewhere each dataset has its own",
    )

    def __post_init__(self) -> None:
        if self.mode == "mixed" and self.batch_size is None:
            raise ValueError("batch_size: required where mode is mixed: samples per batch over all ranks")
        if self.mode != "mixed" and self.batch_size is not None:
            raise ValueError(
                f"batch_size: belongs to mode: mixed; where mode is {self.mode}, give each dataset its own "
                "(datasets.<name>.batch_size)"
            )


@dataclass(kw_only=True)
class Config:
    """What a run is made of. Each component's own keys are declared beside its class, in its registry."""

    plugins: list[str] = key([], resume="free", help="Python files or modules that register parts of your own")
    paths: dict[str, str] = key(
        {}, resume="free", help="roots to refer to as ${paths.name}; one that is absent is yours to fill"
    )
    model: Any = key(registry=MODELS, help="encoders, bridges and language model")
    tokenizer: str | None = key(None, path=True, help="folder or .model file; by default the language model's folder")
    processors: dict[str, Any] = key({}, registry=PROCESSORS, help="modality -> how its files become tensors")
    task: Any = key(registry=TASKS, help="what a batch means: how samples are rendered, what is scored")
    datasets: dict[str, Any] = key({}, registry=DATASETS, help="the mixture")
    mixture: MixtureConfig = key(MixtureConfig, help="how the datasets share the steps")
    validation: dict[str, Any] = key(
        {}, registry=DATASETS, resume="free", help="held-out data, or what an evaluation reads"
    )
    run: Any = key(registry=RUNNERS, help="the loop and its hyper-parameters")

    def __post_init__(self) -> None:
        for name, dataset in self.datasets.items() if self.mixture.mode == "mixed" else ():
            for key_name in ("batch_tokens", "pack"):
                if getattr(dataset, key_name, None) is not None:
                    raise ValueError(
                        f"datasets.{name}.{key_name}: batches of several datasets (mixture.mode: mixed) have a row for "
                        f"each of mixture.batch_size samples; remove it, or take mixture.mode: random"
                    )


@dataclass(kw_only=True)
class ConfigFile(Config):
    """What a YAML may say: a configuration, or what is other than in its base."""

    base: str | None = key(
        None,
        path=True,
        help="a YAML that this one is laid over: mappings merge, all else replaces what stands there, and so does a "
        "part of another name; null takes a mapping or list away",
    )


@dataclass
class LoadedConfig:
    """A bound configuration, and what its file names but the disk does not hold.

    Attributes:
        config: the typed configuration.
        source: the YAML's path.
        awaited: missing paths below a root of ``paths:`` that does not exist yet: weights and data that the user
            still has to fetch. They stop a run, not a check.
        tree: what the file and its bases say, before defaults.
    """

    config: Config
    source: Path
    awaited: list[MissingPath]
    tree: ConfigTree

    def require_paths(self) -> None:
        """Raise ConfigError when anything is still awaited."""
        if self.awaited:
            raise ConfigError([m.problem for m in self.awaited])

    def to_yaml(self) -> str:
        """The resolved configuration, every default written out."""
        return yaml.safe_dump(to_plain(self.config), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path, overrides: Sequence[str] = (), defer_missing: bool = False) -> LoadedConfig:
    """Read, resolve, bind and check a YAML file.

    Args:
        path: the YAML; relative paths in it resolve against its folder, then against the working folder.
        overrides: "a.b=c" strings, later ones win.
        defer_missing: every missing path is only awaited, wherever it is (a plan goes on without it).

    Raises:
        ConfigError: every problem found, with file, key and remedy.
    """
    path = Path(path)
    tree = read_config_file(path, overrides)
    binder = Binder(str(path), path.resolve().parent, tree.origins)
    for key_name, remedy in secrets_in(tree.values):
        binder.problem(key_name, remedy)
    # Parts that the rest names are registered by plugins.
    plugins = binder.value(list[str], tree.values.get("plugins", []), "plugins", {})
    if binder.problems:
        raise ConfigError(binder.problems)
    origin = binder.origin("plugins")
    import_plugins(plugins, origin.folder, origin.file)
    config = binder.dataclass(Config, tree.values, "")
    absent_roots = _absent_roots(tree.values.get("paths"), binder)
    below = [m for m in binder.missing if any(_below(place, absent_roots) for place in m.looked_in)]
    awaited = binder.missing if defer_missing else below
    problems = binder.problems + [m.problem for m in binder.missing if m not in awaited]
    if problems or config is None:
        raise ConfigError(problems + [m.problem for m in awaited if defer_missing])
    return LoadedConfig(config, path, awaited, tree)


def _absent_roots(paths: Any, binder: Binder) -> list[Path]:
    given = paths.items() if isinstance(paths, dict) else ()
    roots = [
        Path(os.path.normpath(binder.origin(join("paths", name)).folder / os.path.expanduser(root)))
        for name, root in given
        if isinstance(root, str)
    ]
    return [root for root in roots if not os.path.exists(root)]


def _below(place: str, roots: list[Path]) -> bool:
    return any(Path(place) == root or root in Path(place).parents for root in roots)
