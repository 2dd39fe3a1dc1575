"""What a batch means: alignment (stage 1) and instruction (stage 2)."""

from chatbridge.tasks.alignment import AlignmentConfig, AlignmentTask
from chatbridge.tasks.base import BaseTask, Rendered
from chatbridge.tasks.instruction import InstructionConfig, InstructionTask

__all__ = ["AlignmentConfig", "AlignmentTask", "BaseTask", "InstructionConfig", "InstructionTask", "Rendered"]
