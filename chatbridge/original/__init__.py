"""``compat: original``: parts that repeat what the published code does where it is plainly wrong.

Each is registered as a variant of the part that it inherits from (`Registry.variant`), which knows nothing of it.
"""

from chatbridge.original import model, processors, schedules, tasks

__all__ = ["model", "processors", "schedules", "tasks"]
