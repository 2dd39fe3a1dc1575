"""Annotations, datasets, the mixture and collation."""

from chatbridge.datasets.annotations import AnnotatedDataset, AnnotationFile, AnnotationsConfig
from chatbridge.datasets.base import Parts, TaskDataset
from chatbridge.datasets.collate import Collator
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.mixture import Component, SampleMixture, StepMixture
from chatbridge.datasets.reading import BatchStream, MixtureReader
from chatbridge.datasets.records import Record
from chatbridge.datasets.webdataset import ShardDataset, WebdatasetConfig

__all__ = [
    "AnnotatedDataset",
    "AnnotationFile",
    "AnnotationsConfig",
    "BatchStream",
    "Collator",
    "Component",
    "MixtureReader",
    "Parts",
    "Record",
    "SampleMixture",
    "ShardDataset",
    "StepMixture",
    "TaskDataset",
    "TaskKind",
    "WebdatasetConfig",
]
