"""A state_dict that is damaged, or holds numbers that an assignment refuses, is refused as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import OPTIONS_PATH

import braintools_optim as bo

SUFFIXES = ['.npz', '.safetensors', '.msgpack']
VALUES = OPTIONS_PATH


def build(**options: Any) -> bo.Optimizer:
    schedule = bo.ReduceLROnPlateau(bo.StepLR(0.1, 3), factor=0.5)
    optimizer = bo.Adam(schedule, weight_decay=bo.StepLR(0.1, 3), loss_scale=bo.DynamicLossScale(), **options)
    return optimizer.register_trainable_weights({name: brainstate.ParamState(jnp.ones(2)) for name in 'ab'})


def assert_unchanged(optimizer: Any, before: dict[str, Any]) -> None:
    assert jax.tree.all(jax.tree.map(np.array_equal, before, optimizer.state_dict()))


NUMBERS = {
    ('settings.lr_scheduler.manual', 'rate'): (-5.0, 'Must be >= 0'),
    ('settings.lr_scheduler.manual', 'reference'): (np.nan, 'Must be >= 0'),
    ('settings.lr_scheduler.last_epoch', ''): (-3, 'Must be >= 0'),
    ('settings.lr_scheduler.best', ''): (np.nan, 'Must be >= -inf'),
    ('settings.lr_scheduler.num_bad_epochs', ''): (-1, 'Must be >= 0'),
    ('settings.lr_scheduler.reduction', ''): ([-1.0], 'Must be >= 0'),
    ('settings.schedules.defaults.weight_decay.last_epoch', ''): (-1, 'Must be >= 0'),
    ('settings.step_count', ''): (-1, 'Must be >= 0'),
    ('loss_scale.state', 'scale'): (-1.0, 'Must be >= 0'),
    ('loss_scale.state', 'updates'): (-1, 'Must be >= 0'),
    (VALUES, 'groups.0.lr'): (-5.0, r'\(learning rate\)\. Must be >= 0'),
    (VALUES, 'groups.0.eps'): (-1e-8, 'Must be >= 0'),
    (VALUES, 'groups.0.betas.0.value'): (1.5, r'Must be in \[0, 1\)'),
    (VALUES, 'groups.0.betas.1.complement'): (0.5, r'Must be 1 - 0\.999'),
    (VALUES, 'defaults.lr_scale'): (np.inf, 'Must be finite and >= 0'),
    (VALUES, 'shared.max_consecutive_skips'): (2.5, 'Must be an integer'),
    ('opt_state', 'step.a'): (-1, 'Must be >= 0'),
    ('opt_state', 'skipped'): ([-1, 0], 'Must be >= 0'),
}


def damaged(saved: dict[str, Any], place: tuple[str, str], number: Any) -> dict[str, Any]:
    """Return a copy with another number at a place: the name of a State and of an array."""
    state, name = place
    changed = copy.deepcopy(saved)
    arrays = changed['opt_state'] if state == 'opt_state' else changed['states'][state]
    arrays[name] = np.full_like(arrays[name], 0) + np.asarray(number, arrays[name].dtype)
    return changed


@pytest.mark.parametrize(
    ('place', 'number', 'match'), [(k, *v) for k, v in NUMBERS.items()], ids=map('.'.join, NUMBERS)
)
def test_numbers_that_an_assignment_refuses(place: tuple[str, str], number: Any, match: str) -> None:
    optimizer = build()
    before = optimizer.state_dict()
    wrong = damaged(before, place, number)
    with pytest.raises(ValueError, match=rf'Invalid {".".join(filter(None, place))}=.*{match}'):
        optimizer.load_state_dict(wrong)
    assert_unchanged(optimizer, before)
    assert len(optimizer.load_state_dict(wrong, strict=False)) == 1
    assert_unchanged(optimizer, before)


def test_all_refused_numbers_are_in_one_error() -> None:
    optimizer = build()
    wrong = optimizer.state_dict()
    for place, (number, _) in NUMBERS.items():
        wrong = damaged(wrong, place, number)
    with pytest.raises(ValueError, match='does not fit') as caught:
        optimizer.load_state_dict(wrong)
    assert all('.'.join(filter(None, place)) in str(caught.value) for place in NUMBERS)


@pytest.mark.usefixtures('float32')
def test_numbers_at_the_edge_of_float32_are_accepted() -> None:
    """Rounding may have moved an option onto the end of its range, which an assignment refuses."""
    optimizer = build(betas=(0.9, 1 - 1e-12))
    assert optimizer.load_state_dict(optimizer.state_dict()) == []


Damage = Callable[[dict[str, Any]], Any]
DAMAGES: dict[str, tuple[Damage, str]] = {
    'no params': (lambda s: s['param_groups'][0].pop('params'), 'param_groups.0.params is missing'),
    'no own': (lambda s: s['param_groups'][0].pop('own'), 'param_groups.0.own is missing'),
    'no unit': (lambda s: s['weights']['a'].pop('unit'), 'weights.a.unit is missing'),
    'no flag': (lambda s: s['weights']['b'].pop('decays'), 'weights.b.decays is missing'),
    'weights': (lambda s: s.update(weights=3), 'weights must be a dict, not 3'),
    'weight': (lambda s: s['weights'].update(a=None), 'weights.a must be a dict, not None'),
    'groups': (lambda s: s.update(param_groups='ab'), "param_groups must be a list, not 'ab'"),
    'group': (lambda s: s.update(param_groups=[5]), 'param_groups.0 must be a dict, not 5'),
    'params': (lambda s: s['param_groups'][0].update(params=[1, 'b']), 'param_groups.0.params.0 must be str, not 1'),
    'base_lrs': (lambda s: s.update(base_lrs=[None]), 'base_lrs.0 must be int or float, not None'),
    'states': (lambda s: s['states'].update(x=1), 'states.x must be a dict, not 1'),
    'array': (lambda s: s['opt_state'].update({'exp_avg.a': None}), 'opt_state.exp_avg.a must be'),
    'parts': (lambda s: [s.pop(name) for name in ('weights', 'opt_state')], "lacks ['opt_state', 'weights']"),
    'unknown weight': (lambda s: s['weights'].pop('a'), "Invalid param_groups.0.params=['a']"),
    'missing State': (lambda s: s['states'].pop('settings.step_count'), 'settings.step_count: not there'),
    'missing array': (lambda s: s['opt_state'].pop('step.a'), 'opt_state.step.a: not there'),
}


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize(('damage', 'expected'), DAMAGES.values(), ids=DAMAGES)
def test_damaged_state_dict_is_refused(damage: Damage, expected: str, strict: bool) -> None:
    optimizer = build()
    optimizer.update({name: jnp.ones(2) for name in 'ab'})
    saved, other = optimizer.state_dict(), build()
    damage(saved)
    before = other.state_dict()
    if not strict and 'not there' in expected:
        assert expected in other.load_state_dict(saved, strict=False)
        return
    with pytest.raises(ValueError, match='state_dict') as caught:
        other.load_state_dict(saved, strict=strict)
    assert expected in str(caught.value)
    assert_unchanged(other, before)


def test_every_missing_entry_is_a_value_error() -> None:
    optimizer = build()
    before = optimizer.state_dict()

    def without_one(tree: Any) -> Any:
        if isinstance(tree, dict):
            for key in tree:
                yield {k: v for k, v in tree.items() if k != key}
                for part in without_one(tree[key]):
                    yield {**tree, key: part}
        elif isinstance(tree, list):
            for i, entry in enumerate(tree):
                for part in without_one(entry):
                    yield [*tree[:i], part, *tree[i + 1 :]]

    for damaged in without_one(before):
        try:
            optimizer.load_state_dict(damaged)
        except ValueError:
            assert_unchanged(optimizer, before)


def test_state_dict_of_a_later_version_is_refused_as_such() -> None:
    optimizer = build()
    with pytest.raises(ValueError, match=r'Invalid format=2 .*a later version of braintools_optim wrote'):
        optimizer.load_state_dict({**optimizer.state_dict(), 'format': 2})


# SAM


def sam(rho: float = 0.1, adaptive: bool = False, lr: float = 0.1) -> tuple[bo.SAM, brainstate.ParamState]:
    w = brainstate.ParamState(jnp.array([1.0, -2.0]))
    optimizer = bo.SAM(bo.Adam(bo.StepLR(lr, 2)), rho, adaptive).register_trainable_weights({'w': w})
    return optimizer, w


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_sam_continues_from_its_file(suffix: str, tmp_path: Path) -> None:
    (optimizer, w), (again, v) = sam(), sam()
    for _ in range(2):
        optimizer.minimize(lambda: jnp.sum(w.value**4))
    optimizer.rho = 0.75
    optimizer.save(tmp_path / f'x{suffix}')
    assert again.load(tmp_path / f'x{suffix}') == []
    assert again.rho == 0.75
    v.value = w.value
    optimizer.minimize(lambda: jnp.sum(w.value**4))
    again.minimize(lambda: jnp.sum(v.value**4))
    assert v.value.tolist() == w.value.tolist()


def test_state_dict_of_another_sam_is_refused() -> None:
    (optimizer, _), (other, _) = sam(), sam(adaptive=True, lr=0.2)
    before = other.state_dict()
    wrong = {**optimizer.state_dict(), 'rho': -1.0}
    with pytest.raises(ValueError, match='which is unchanged') as caught:
        other.load_state_dict(wrong)
    for part in ('Invalid rho=-1.0', 'adaptive: False there, True here', 'base_lrs: [0.1] there, [0.2] here'):
        assert part in str(caught.value)
    assert_unchanged(other, before)
    assert len(other.load_state_dict(wrong, strict=False)) == 3
    assert other.rho == 0.1
    with pytest.raises(ValueError, match=r'base_optimizer\.load_state_dict\(state_dict\) takes it'):
        other.load_state_dict(optimizer.base_optimizer.state_dict())
    with pytest.raises(ValueError, match='This one is of SAM'):
        other.base_optimizer.load_state_dict(optimizer.state_dict())
