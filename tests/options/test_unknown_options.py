"""Constructors refuse every option that is not in their signature, and name it."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import pytest
from tables.optimizers import ROWS, Row

import braintools_optim as bo

MADE_UP = {
    'options': 3,
    'shared': 3,
    'args': 3,
    'kwargs': 3,
    'self': 3,
    'defaults': {},
    'weigth_decay': 0.1,
    'learning_rate': 0.1,
    'epsilon': 1e-8,
}


def parameters_of(row: Row) -> dict[str, inspect.Parameter]:
    """Return what the constructor takes by keyword, of SAM too, whose class has no signature of its constructor."""
    parameters = inspect.signature(row.optimizer).parameters
    if 'kwargs' in parameters:
        parameters = inspect.signature(row.optimizer.__init__).parameters
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in parameters.items() if p.kind not in kinds and name != 'self'}


def all_options() -> dict[str, Any]:
    """Return the name of every option of any optimizer, with a default as its value, and some made-up names."""
    found: dict[str, Any] = {}
    for row in ROWS:
        for name, parameter in parameters_of(row).items():
            if found.get(name) in (None, False):
                found[name] = None if parameter.default is parameter.empty else parameter.default
    return found | MADE_UP


ALL_OPTIONS = all_options()


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.optimizer.__name__)
def test_options_of_other_optimizers_are_refused_by_name(row: Row) -> None:
    wrong = []
    with jax.disable_jit():
        for name in ALL_OPTIONS.keys() - parameters_of(row).keys():
            try:
                row.optimizer(**{**row.required(), name: ALL_OPTIONS[name]})
            except TypeError as error:
                if name not in str(error) or 'multiple values' in str(error):
                    wrong.append(f'{name}: {error}')
            except Exception as error:
                wrong.append(f'{name}: {type(error).__name__}: {error}')
            else:
                wrong.append(f'{name} is accepted')
    assert not wrong, '\n'.join(sorted(wrong))


@pytest.mark.parametrize(
    ('rule', 'theirs', 'ours'),
    [
        (bo.AdEMAMix, 'alpha', 'mixing'),
        (lambda **options: bo.Lookahead(bo.SGD(0.1), **options), 'k', 'sync_period'),
        (bo.Sophia, 'rho', 'gamma'),
        (bo.AdaBelief, 'weight_decouple', 'decoupled_weight_decay'),
        (bo.Adafactor, 'd', 'clip_threshold'),
    ],
)
def test_name_of_the_authors_is_answered_by_ours(rule: Any, theirs: str, ours: str) -> None:
    with pytest.raises(TypeError, match=f"has no option .'{theirs}'.*Did you mean '{ours}'"):
        rule(**{theirs: 5})


def test_names_of_many_options_are_tried() -> None:
    assert len(ALL_OPTIONS) > 80
