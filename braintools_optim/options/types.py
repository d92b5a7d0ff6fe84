"""Names for types that Python cannot express precisely."""

from __future__ import annotations

from typing import Any

__all__ = ['ArrayOrQuantity', 'OptionValue', 'Options', 'Structure', 'Tree']

Tree = Any
"""A tree whose leaves are arrays or States, or numbers and strings in a ``state_dict``: jax has no type for trees."""
Structure = Any
"""A ``jax.tree_util.PyTreeDef``, which jax does not describe to type checkers."""
ArrayOrQuantity = Any
"""An array or number, with or without a unit: the arithmetic of ``brainunit.Quantity`` has no types."""
OptionValue = Any
"""The value of an option: a number, a tuple of numbers, a flag or a schedule."""
Options = dict[str, OptionValue]
"""Options by name."""
