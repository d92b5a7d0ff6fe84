"""Every constructor refuses wrong values of every option."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import brainunit as u
import jax.numpy as jnp
import pytest
from internals import SHARED
from tables.optimizers import OPTIMIZERS, ROWS

import braintools_optim as bo
from braintools_optim import schedulers

NAN, INF = float('nan'), float('inf')
RULES = sorted(OPTIMIZERS, key=lambda rule: rule.__name__)
SCHEDULES = [getattr(schedulers, name) for name in schedulers.__all__]
NEEDED: dict[Any, dict[str, Any]] = {  # arguments without a default
    **{row.optimizer: row.required() for row in ROWS},
    bo.LambdaLR: {'base_lr': 0.1, 'lr_lambda': lambda t: 1.0},
    bo.MultiplicativeLR: {'base_lr': 0.1, 'lr_lambda': lambda t: 1.0},
    bo.OneCycleLR: {'total_steps': 10},
    bo.PerUpdate: {'schedule': bo.ConstantLR(0.1), 'steps_per_epoch': 2},
    bo.SequentialLR: {'schedulers': [bo.ConstantLR(0.1)], 'milestones': []},
    bo.ChainedScheduler: {'schedulers': [bo.ConstantLR(0.1)]},
    bo.OptaxSchedule: {'function': lambda t: 0.1},
}
NUMBERS = {  # options with a default that is no number; True if None is allowed
    'lr': False, 'base_lr': False, 'max_lr': False, 'min_lr': False, 'base_momentum': False, 'max_momentum': False,
    'steps_per_epoch': True, 'grad_clip_norm': True, 'grad_clip_value': True, 'grad_clip_adaptive': True,
    'grokfast': True, 'loss_scale': True, 'beta1': True, 'beta2': True, 'total_steps': True, 'epochs': True,
    'step_size_down': True, 'end_value': True,
}  # fmt: skip
SIGNED = {'decay_rate', 'f_min', 'ns_coefficients'}  # may be negative


def wrong_values(name: str, default: Any) -> Iterator[Any]:
    """Yield values that an option with this default cannot have."""
    if isinstance(default, bool):
        yield from ('yes', 1, 0.0, None)
    elif isinstance(default, tuple) and name != 'milestones':
        yield from (default[:-1], 'x', None, 0.5)
        for i in range(len(default)):
            yield from (
                (*default[:i], wrong, *default[i + 1 :]) for wrong in (NAN, 'x', *([] if name in SIGNED else [-1.0]))
            )
    elif name in NUMBERS or (isinstance(default, (int, float)) and not isinstance(default, bool)):
        yield from (NAN, 'x', {}, 1j, jnp.ones((1, 2)), 1 * u.mV)
        yield from () if name in SIGNED else (-2,)
        yield from () if default is None or NUMBERS.get(name) else (None,)


def constructor_calls(classes: list[Any]) -> list[tuple[Any, str, Any]]:
    return [
        (cls, name, value)
        for cls in classes
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in SHARED or cls is bo.SGD  # shared options are checked on one class
        if name != 'stages'  # a sequence of any length
        for value in wrong_values(name, parameter.default)
        if not (cls is bo.LBFGS and name == 'lr' and value is None)  # None is the default
    ]


OF_RULES, OF_SCHEDULES = constructor_calls(RULES), constructor_calls(SCHEDULES)


@pytest.mark.filterwarnings('ignore:beta. is deprecated')
@pytest.mark.parametrize('cls', [*RULES, *SCHEDULES], ids=lambda cls: cls.__name__)
def test_constructors_refuse_wrong_values(cls: Any) -> None:
    for _, name, value in (call for call in OF_RULES + OF_SCHEDULES if call[0] is cls):
        with pytest.raises((TypeError, ValueError), match=rf'Invalid ({name}|betas)(\[\d+\])?=.*\. Must ') as caught:
            cls(**{**NEEDED.get(cls, {}), name: value})
        shown = re.search(r'=(.*?)( \(learning rate\))?\. Must', str(caught.value), re.DOTALL)[1]
        assert shown[:40] in repr(value), str(caught.value)
        if isinstance(value, (str, dict, bool)) or value is None:
            assert caught.type is TypeError, str(caught.value)


def test_wrong_values_are_generated_for_most_options() -> None:
    assert len(OF_RULES) > 1000
    assert len(OF_SCHEDULES) > 500
