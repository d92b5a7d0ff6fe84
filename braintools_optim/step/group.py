"""Group: parameters that share a rule and hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass

from braintools_optim.options.types import Tree
from braintools_optim.step.rule import Rule

__all__ = ['Group']


@dataclass(frozen=True)
class Group:
    """The names of the leaves of a group, the States or the tree that were registered, and the rule of the group."""

    keys: list[str]
    params: Tree
    rule: Rule
