"""Grouped: the methods of an optimizer that register weights, divide them into groups, and freeze them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

from braintools_optim.compiled.update import Updater
from braintools_optim.core import Core
from braintools_optim.groups.shown import ParamGroup
from braintools_optim.groups.spec import GroupSpec, group_spec, torch_groups
from braintools_optim.options.types import Options, Tree
from braintools_optim.settings import OptimState, Settings
from braintools_optim.step.rule import Rule
from braintools_optim.weights.groups import divide_by_predicates
from braintools_optim.weights.predicates import Predicate
from braintools_optim.weights.registered import Weights
from braintools_optim.weights.unique_states import UniqueStateManager

__all__ = ['Grouped']


class Grouped:
    """The methods of an optimizer that register weights, divide them into groups, and freeze them."""

    _core: Core
    _updater: Updater
    opt_state: OptimState | None
    settings: Settings

    def register_trainable_weights(self, param_states: Tree) -> Self:
        """Register weights: a tree of ``brainstate.State``, such as ``model.states(brainstate.ParamState)``.

        Weights that are registered already keep their optimizer state; further ones become a group, or the groups of
        the option ``groups``. A tree without weights warns, and updates then change nothing. A list of
        dicts with the weights under ``'params'``, torch's form, registers a group for each dict, with the options that
        the dict holds besides. Returns the optimizer.
        """
        core = self._core
        if (entries := torch_groups(param_states)) is not None:
            self._add_entries(entries)
            return self
        weights, keys = core.weights.extended(param_states, skip_known=True)
        if not (keys or core.groups):
            warnings.warn('There are no weights to register: updates will change nothing.', stacklevel=2)
        if keys or not core.groups:
            named = weights.named()
            parts = divide_by_predicates({key: named[key] for key in keys}, core.arguments.groups or {})
            trees = [{name: weights.state_of(name) for name in names} for names, _ in parts]
            trees = [param_states] if len(parts) == 1 else trees
            pairs = zip(parts, trees, strict=True)
            self._add_groups(
                weights, [group_spec(self._core.rule, names, tree, value) for (names, value), tree in pairs]
            )
        return self

    def add_param_group(self, params: Tree, optimizer: Rule | None = None, **overrides: Any) -> None:
        """Register more weights, with options that override (``lr``, ``weight_decay``, ``betas``, ...).

        Parameters
        ----------
        params : tree
            The States, or torch's form: a dict with the States under ``'params'`` and options.
        optimizer : Optimizer, optional
            An unregistered optimizer, whose algorithm, options and schedule the group has.
        **overrides
            Options of the group; all other options are those of the optimizer. A number as ``lr`` is the base rate,
            from which the schedule of the optimizer drives the group; a schedule or a function of the update count
            drives the group alone. ``no_decay`` and ``freeze`` are True or a predicate, ``constraints`` is one
            constraint or a dict like that of the constructor.
        """
        if not self._core.groups:
            raise ValueError('register_trainable_weights must be called before add_param_group.')
        if optimizer is not None and overrides:
            raise TypeError(f'Invalid options {sorted(overrides)} beside an optimizer. Give them to the optimizer.')
        if optimizer is not None and not isinstance(optimizer, Grouped):
            raise TypeError(f'Invalid optimizer={optimizer!r}. Must be an unregistered Optimizer.')
        entries = torch_groups(params) if optimizer is None else None
        if entries is not None:
            self._add_entries([{**entry, **overrides} for entry in entries])
            return
        weights, keys = self._core.weights.extended(params)
        self._add_groups(weights, [group_spec(self._core.rule, keys, params, optimizer or overrides)])

    def _add_entries(self, entries: Sequence[Options]) -> None:
        """Register groups that are given in torch's form."""
        if self._core.arguments.groups:
            raise ValueError('A list of groups cannot be registered beside groups=. Must be one of them.')
        weights, specs = self._core.weights, []
        for entry in entries:
            params = entry.pop('params')
            weights, keys = weights.extended(params)
            specs.append(group_spec(self._core.rule, keys, params, entry))
        self._add_groups(weights, specs)

    def _add_groups(self, weights: Weights, specs: list[GroupSpec]) -> None:
        self._core.refuse_evaluating('Registering weights')
        self._core.add_groups(weights, self.split_groups(weights, specs))
        self.opt_state = self._core.opt_state
        self._updater.compile()

    def split_groups(self, weights: Weights, specs: list[GroupSpec]) -> list[GroupSpec]:
        """Return further groups, divided as the rule needs them."""
        return specs

    def freeze(self, predicate: Predicate) -> None:
        """Leave weights as they are: no update, no decay, no part in norms. Weights registered later are included.

        Weights that were never updated have no slots while they are frozen. Their gradients may be missing.
        """
        self._core.set_frozen(predicate, True)

    def unfreeze(self, predicate: Predicate) -> None:
        """Update weights again, with the slots that they had."""
        self._core.set_frozen(predicate, False)

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups, each a mapping from option to value that can be assigned."""
        check = self._core.check_change
        return [ParamGroup(self.settings, group, i, check) for i, group in enumerate(self._core.groups)]

    @property
    def param_states(self) -> UniqueStateManager:
        """The registered States, each once."""
        return self._core.weights.manager

    @property
    def weight_names(self) -> list[str]:
        """The names of the leaves of the registered weights, such as ``'layers.0.weight.bias'``."""
        return list(self._core.weights.keys)

    def group_names(self, group: int) -> list[str]:
        """Return the leaf names of one group."""
        return list(self._core.groups[group].keys)
