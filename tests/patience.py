"""How long a test waits for something that must happen: a guard against hanging, never a measure of speed."""

PATIENCE = 600.0
"""Seconds. Machines may be thirty times slower than the one a test was written on."""
