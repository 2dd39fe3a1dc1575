"""Assembly by name, the one training loop, and evaluation."""

from chatbridge.runners.assembly import Assembly
from chatbridge.runners.config import TrainingConfig
from chatbridge.runners.training import TrainingRunner

__all__ = ["Assembly", "TrainingConfig", "TrainingRunner"]
