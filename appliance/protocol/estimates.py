"""Estimates: the memory that a model needs, before it is loaded and after."""

from enum import StrEnum


class Basis(StrEnum):
    """Where a number comes from."""

    ESTIMATED = "estimated"
    """From the model's files."""
    MEASURED = "measured"
    """From earlier loads of the same configuration on this machine."""
    CHOSEN = "chosen"
    """The owner has set it."""
