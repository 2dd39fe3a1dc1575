"""Annotations, datasets, the mixture and collation."""

from chatbridge.datasets.annotations import AnnotationFile, Record
from chatbridge.datasets.builder import AnnotatedDataset, AnnotationsConfig, MixtureCollator, MixtureDataset, Parts
from chatbridge.datasets.collate import Collator, Example
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.mixture import Draw, Mixture, MixtureSampler, Stream

__all__ = [
    "AnnotatedDataset",
    "AnnotationFile",
    "AnnotationsConfig",
    "Collator",
    "Draw",
    "Example",
    "Mixture",
    "MixtureCollator",
    "MixtureDataset",
    "MixtureSampler",
    "Parts",
    "Record",
    "Stream",
    "TaskKind",
]
