"""Annotations, datasets, the mixture and collation."""

from chatbridge.datasets.annotated import AnnotatedDataset, AnnotationsConfig
from chatbridge.datasets.annotations import AnnotationFile
from chatbridge.datasets.builder import DatasetConfig, Parts, TaskDataset
from chatbridge.datasets.collate import Collator, Example
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.mixture import (
    Draw,
    MixedPlan,
    Mixture,
    MixtureSampler,
    Plan,
    SampleMixture,
    StepMixture,
    Stream,
)
from chatbridge.datasets.reading import BatchStream, MixtureReader
from chatbridge.datasets.records import Record
from chatbridge.datasets.sharded import ShardDataset, WebdatasetConfig

__all__ = [
    "AnnotatedDataset",
    "AnnotationFile",
    "AnnotationsConfig",
    "BatchStream",
    "Collator",
    "DatasetConfig",
    "Draw",
    "Example",
    "MixedPlan",
    "Mixture",
    "MixtureReader",
    "MixtureSampler",
    "Parts",
    "Plan",
    "Record",
    "SampleMixture",
    "ShardDataset",
    "StepMixture",
    "Stream",
    "TaskDataset",
    "TaskKind",
    "WebdatasetConfig",
]
