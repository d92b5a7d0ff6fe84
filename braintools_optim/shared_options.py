"""Options that every optimizer takes by keyword: their types, and what they are when not given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from braintools_optim.constraints import Constraint, as_constraint
from braintools_optim.loss_scale import DynamicLossScale
from braintools_optim.options import validate
from braintools_optim.selection import Predicate, check_predicate
from braintools_optim.units import norm_scales

__all__ = ['FIXED', 'OF_ALL', 'OF_GROUPS', 'SHARED', 'SharedOptions', 'check_fixed']


class SharedOptions(TypedDict, total=False):
    """Options of every optimizer; :class:`Optimizer` describes them."""

    maximize: bool
    cautious: bool
    grokfast: float | None
    grokfast_decay: float
    grad_clip_over: Literal['all', 'group', 'weight']
    grad_clip_adaptive: float | None
    norm_unit: Literal['own'] | Sequence[Any] | None
    on_nonfinite: Literal['ignore', 'skip', 'zero', 'raise']
    max_consecutive_skips: int
    loss_scale: float | DynamicLossScale | None
    groups: Mapping[Predicate, Mapping[str, Any]] | None
    no_decay: Predicate | None
    constraints: Mapping[Predicate, Constraint | Callable[[Any], Any]] | None
    state_dtype: Any
    rounding: Literal['nearest', 'stochastic']
    master_weights: bool
    metrics: bool


OF_GROUPS: dict[str, Any] = {'maximize': False, 'cautious': False, 'grokfast': None, 'grokfast_decay': 0.98}
"""Those that a group may have of its own."""

OF_ALL: dict[str, Any] = {
    'grad_clip_over': 'all',
    'grad_clip_adaptive': None,
    'on_nonfinite': 'ignore',
    'max_consecutive_skips': 20,
    'rounding': 'nearest',
}
"""Those that concern all groups together."""

FIXED: dict[str, Any] = {
    'norm_unit': None,
    'loss_scale': None,
    'groups': None,
    'no_decay': None,
    'constraints': None,
    'state_dtype': None,
    'master_weights': False,
    'metrics': False,
}
"""Those that cannot be assigned: they decide what is remembered of which weight."""

SHARED = OF_GROUPS | OF_ALL | FIXED


def check_fixed(options: Mapping[str, Any]) -> None:
    """Refuse options that cannot be assigned and are not of their kind."""
    for name in ('master_weights', 'metrics'):
        validate(name, options[name], like=False)
    for name in ('groups', 'constraints'):
        if options[name] is not None and not isinstance(options[name], Mapping):
            raise TypeError(f'Invalid {name}={options[name]!r}. Must be a dict whose keys choose weights.')
        for predicate in options[name] or {}:
            check_predicate(predicate)
    for predicate, own in (options['groups'] or {}).items():
        if not isinstance(own, Mapping):
            raise TypeError(f'Invalid groups[{predicate!r}]={own!r}. Must be a dict of options.')
    for constraint in (options['constraints'] or {}).values():
        as_constraint(constraint)
    if options['no_decay'] is not None:
        check_predicate(options['no_decay'])
    norm_scales({}, options['norm_unit'])
    if not isinstance(options['loss_scale'], DynamicLossScale):
        validate('loss_scale', options['loss_scale'])
