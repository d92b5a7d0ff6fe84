"""Loading what fits, and renaming weights."""

from __future__ import annotations

from collections.abc import Callable

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from internals import set_update_counts
from training import build, train

import braintools_optim as bo

RULES = {'rule': lambda: bo.Adam(0.1), 'tree': lambda: bo.OptaxOptimizer(optax.adam(0.1))}


@pytest.mark.parametrize('make', RULES.values(), ids=RULES)
def test_weights_are_renamed(make: Callable[[], bo.Optimizer]) -> None:
    """New names may be each other's, the name of a slot, or the end of another name."""
    names = {'a': 'b', 'b': 'a', 'c': 'mu', 'd': 'e.d', 'e.f': 'f'}
    opt = make().register_trainable_weights({name: brainstate.ParamState(jnp.zeros(2)) for name in names})
    opt.update({name: jnp.full(2, float(i)) for i, name in enumerate(names, 1)})
    set_update_counts(opt, {name: i for i, name in enumerate(opt.weight_names)})
    saved = opt.state_dict()
    again = make().register_trainable_weights(
        {name: brainstate.ParamState(jnp.zeros(2)) for name in ('e.d', 'mu', 'f', 'a', 'b')}
    )
    with pytest.raises(ValueError, match=r"params: \['a', 'b', 'c', 'd', 'e\.f'\] there"):
        again.load_state_dict(saved)
    assert again.load_state_dict(saved, rename=names) == []
    found = again.state_dict()['opt_state']
    new_key = {f'.{old}': f'.{new}' for old, new in names.items()}
    for key, value in saved['opt_state'].items():
        old = max((end for end in new_key if key.endswith(end)), key=len, default='')
        np.testing.assert_array_equal(found[key.removesuffix(old) + new_key.get(old, '')], value)
    assert found.keys() != saved['opt_state'].keys()


def test_wrong_renames_are_refused() -> None:
    opt, _ = build(lambda: bo.Adam(0.1))
    before, saved = opt.state_dict(), opt.state_dict()
    for rename, match in [
        ({'z': 'a.x'}, r"there is no \['z'\] there. Must be among \['a\.x', 'a\.y'"),
        ({'a.x': 'z'}, r"there is no \['z'\] here"),
        ({'a.x': 'b.x'}, r"both 'a\.x' and 'b\.x' would be 'b\.x'"),
    ]:
        for strict in (True, False):
            with pytest.raises(ValueError, match=f'Invalid rename: {match}'):
                opt.load_state_dict(saved, strict, rename)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))


def test_strict_false_loads_what_fits() -> None:
    """Each weight gets all its slots or none; a group gets its options if it has the same weights."""
    opt, states = build(lambda: bo.Adam(0.1), groups=3)
    train(opt, states, 0, 4)
    opt.betas = (0.5, 0.6)
    values = {name: jax.tree.map(np.asarray, state.value) for name, state in states.items()}
    values['a']['x'] = np.ones((3, 3), np.float32)  # another shape; b and d share a group, c has none
    values['d'] = np.ones(2, np.float32)
    others = {name: brainstate.ParamState(jax.tree.map(jnp.asarray, value)) for name, value in values.items()}
    other = bo.Adam(0.2).register_trainable_weights({'a': others['a']})
    other.add_param_group({'b': others['b'], 'd': others['d']}, lr=0.9)
    problems = other.load_state_dict(opt.state_dict(), strict=False)
    state, saved = other.state_dict()['opt_state'], opt.state_dict()['opt_state']
    assert {key for key in state if np.any(state[key])} == {
        f'{slot}.{leaf}' for slot in ('step', 'exp_avg', 'exp_avg_sq') for leaf in ('a.y', 'b.x', 'b.y')
    }
    assert all(np.array_equal(state[key], saved[key]) for key in state if np.any(state[key]))
    assert 'opt_state.exp_avg.a.x: float32[2, 2] there, float32[3, 3] here' in problems
    assert not any('exp_avg.b.x' in problem for problem in problems)
    assert other.param_groups[0]['betas'] == (0.5, 0.6)
    assert other.get_last_lr() == [0.1, 0.9]
    assert (other.param_groups[1]['weight_decay'], other.param_groups[1]['betas']) == (0.0, (0.9, 0.999))
    train(other, {name: others[name] for name in 'abd'}, 0, 1)  # the optimizer still works
    assert other.load_state_dict(other.state_dict()) == []


@pytest.mark.parametrize('make', RULES.values(), ids=RULES)
def test_state_with_fewer_groups_is_loaded(make: Callable[[], bo.Optimizer]) -> None:
    opt, states = build(make)
    opt = make().register_trainable_weights({'a': states['a']})
    opt.update({'a': {'x': jnp.ones((2, 2), jnp.float32), 'y': jnp.float32(1)}})
    other, others = build(make, groups=3)
    assert other.load_state_dict(opt.state_dict(), strict=False)
    state = other.state_dict()['opt_state']
    assert [int(state[f'step.{name}.x']) for name in 'abc'] == [1, 0, 0]
    train(other, others, 0, 1)
