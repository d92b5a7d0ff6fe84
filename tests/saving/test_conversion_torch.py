"""Runs of torch continue here, and runs from here continue in torch."""

from __future__ import annotations

import copy
import importlib.util
import json
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from continuing import NAMES, assert_at, steps, weights
from golden.record_states import CASES, FILE, GRADIENTS, HALF, START, recorded, torch_run
from internals import own_options

import braintools_optim as bo

RECORDS = json.loads(FILE.read_text())
HAS_TORCH = importlib.util.find_spec('torch') is not None


def state_of(record: Any) -> dict[str, Any]:
    """Return a recorded state_dict as torch has it, with arrays for tensors."""
    own = {
        int(i): {slot: None if x is None else np.array(x) for slot, x in slots.items()}
        for i, slots in record['state'].items()
    }
    return {'state': own, 'param_groups': record['param_groups']}


def unset(case: str) -> bo.Optimizer:
    """Build an optimizer with the same slots and other numbers."""
    name, options = CASES[case]
    flags = {key: options[key] for key in ('amsgrad', 'centered') if key in options}
    flags |= {'momentum': 0.123} if 'momentum' in options else {}
    flags |= {'relative_step': True} if name == 'Adafactor' else {}
    built: bo.Optimizer = getattr(bo, name)(lr=0.456, **flags)
    return built


@pytest.mark.parametrize('case', CASES)
def test_torch_run_continues_here_and_back(case: str) -> None:
    record, states = RECORDS[case], weights()
    opt = unset(case).register_trainable_weights(states)
    opt.load_torch_state_dict(state_of(record['start_state']), NAMES)
    steps(opt, states, 0, HALF)
    assert_at(states, record['half'])

    ours, theirs = opt.torch_state_dict(NAMES), state_of(record['state'])
    given = {slot for slots in theirs['state'].values() for slot, x in slots.items() if x is not None}
    assert {slot for slots in ours['state'].values() for slot in slots} == given
    for i, slots in ours['state'].items():
        for slot, x in slots.items():
            np.testing.assert_allclose(x, theirs['state'][i][slot], rtol=1e-9, err_msg=slot)
    for name, value in ours['param_groups'][0].items():
        expected = theirs['param_groups'][0][name]
        if name == 'eps' and isinstance(expected, list):
            expected = [expected[0] or np.finfo(float).eps, expected[1]]
        np.testing.assert_allclose(value, expected, err_msg=name)
    if HAS_TORCH:
        import torch

        at_half = {name: np.asarray(state.value) for name, state in states.items()}
        back = opt.torch_state_dict(NAMES, torch.as_tensor)
        end, _ = torch_run(case, HALF, 2 * HALF, {name: at_half[name] for name in NAMES}, back)
        assert_at({name: brainstate.ParamState(value) for name, value in end.items()}, record['end'])

    steps(opt, states, 0, 1)  # leave the trajectory, then load
    opt.current_lr = 0.789
    for name, state in states.items():
        state.value = jnp.asarray(record['half'][name])
    opt.load_torch_state_dict(theirs, NAMES)
    steps(opt, states, HALF, 2 * HALF)
    assert_at(states, record['end'])
    if 'SGD' not in case:
        assert int(opt.step_count.value) == 2 * HALF


@pytest.mark.skipif(not HAS_TORCH, reason='needs torch')
def test_recorded_states_equal_torch() -> None:
    now = json.loads(json.dumps(recorded()))
    assert jax.tree.structure(now) == jax.tree.structure(RECORDS)
    for a, b in zip(jax.tree.leaves(now), jax.tree.leaves(RECORDS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9) if isinstance(a, float) else np.testing.assert_equal(a, b)


def test_torch_groups_are_matched_by_their_weights() -> None:
    torch = pytest.importorskip('torch')
    parameters = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in START.items()}
    theirs = torch.optim.AdamW(
        [{'params': [parameters['w']], 'lr': 0.1}, {'params': [parameters['b']], 'weight_decay': 0.5}], lr=0.02
    )
    states = weights()
    ours = bo.AdamW(bo.StepLR(0.1)).register_trainable_weights({'b': states['b']})
    ours.add_param_group({'w': states['w']})

    def both(first: int, last: int) -> None:
        for t in range(first, last):
            for name, p in parameters.items():
                p.grad = torch.tensor(GRADIENTS[name][t])
            theirs.step()
        steps(ours, states, first, last)

    both(0, 1)
    for name, state in states.items():
        state.value = jnp.asarray(parameters[name].detach().numpy())
    ours.load_torch_state_dict(theirs.state_dict(), NAMES)
    assert ours.get_last_lr() == pytest.approx([0.02, 0.1], rel=1e-12)
    both(1, 10)
    assert_at(states, {name: p.detach().numpy() for name, p in parameters.items()})
    theirs.load_state_dict(ours.torch_state_dict(['b', 'w'], torch.as_tensor))
    assert [group['weight_decay'] for group in theirs.param_groups] == [0.5, 0.01]
    ours.weight_decay = 0.2  # changes only the group without an own weight_decay
    assert [group['weight_decay'] for group in ours.param_groups] == [0.5, 0.2]


def test_bfloat16_state_of_torch_is_loaded() -> None:
    torch = pytest.importorskip('torch')
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    theirs = torch.optim.Adam([p], lr=torch.tensor(0.1))
    p.grad = torch.full_like(p, 0.3)
    theirs.step()
    state = brainstate.ParamState(jnp.ones(3, jnp.bfloat16))
    ours = bo.Adam().register_trainable_weights({'w': state})
    ours.load_torch_state_dict(theirs.state_dict(), ['w'])
    assert ours.opt_state.value['exp_avg']['w'].tolist() == theirs.state[p]['exp_avg'].tolist()
    assert float(ours.current_lr) == pytest.approx(0.1)


def torch_adam(**changes: Any) -> dict[str, Any]:
    state = state_of(RECORDS['Adam']['state'])
    group = {**state['param_groups'][0], **changes.pop('group', {})}
    slots = {**state['state'][0], **changes.pop('slots', {})}
    return {
        'state': {**state['state'], 0: {k: x for k, x in slots.items() if x is not None}},
        'param_groups': [{k: x for k, x in group.items() if x is not None}],
        **changes,
    }


REFUSED = {
    'names missing': ({}, ['w'], r"Invalid names.*missing: \['b'\]"),
    'names unknown': ({}, ['w', 'b', 'c'], r"not registered: \['c'\]"),
    'names twice': ({}, ['w', 'b', 'b'], 'twice'),
    'fewer parameters': ({'group': {'params': [0]}}, NAMES, 'Invalid names of 2 weights. Must be 1'),
    'another order': ({}, ['b', 'w'], r'exp_avg\.b: float64\[2, 3\] there, float64\[3\] here'),
    'another optimizer': ({'group': {'betas': None}}, NAMES, "have no 'betas'. Must be those of torch's Adam"),
    'a flag with a slot': ({'group': {'amsgrad': True}}, NAMES, 'amsgrad.*cannot be assigned'),
    'another slot': ({'slots': {'max_exp_avg_sq': np.ones((2, 3))}}, NAMES, r'max_exp_avg_sq\.w: not here'),
    'a missing slot': ({'slots': {'exp_avg': None}}, NAMES, r'exp_avg\.w: not there'),
    'an option out of range': ({'group': {'eps': -1.0}}, NAMES, 'Invalid eps=-1'),
    'other numbers': ({'slots': {'exp_avg': np.ones((2, 3), complex)}}, NAMES, r'exp_avg\.w: complex128'),
    'not torch': ({'state': 3, 'param_groups': 0}, NAMES, None),
}


@pytest.mark.parametrize(('changes', 'names', 'match'), REFUSED.values(), ids=REFUSED)
def test_unfit_torch_state_changes_nothing(changes: dict[str, Any], names: list[str], match: str | None) -> None:
    opt = bo.Adam(bo.StepLR(0.3), betas=(0.5, 0.6)).register_trainable_weights(weights())
    before, own = opt.state_dict(), own_options(opt)
    state = torch_adam(**changes) if match else {'opt_state': ()}
    with pytest.raises(ValueError, match=match or 'Must be torch'):
        opt.load_torch_state_dict(state, names)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))
    assert own_options(opt) == own


def test_options_unknown_to_torch_are_refused() -> None:
    opt = bo.Adafactor(0.1, beta1=0.5).register_trainable_weights(weights())
    for act in (
        lambda: opt.torch_state_dict(NAMES),
        lambda: opt.load_torch_state_dict(state_of(RECORDS['Adafactor']['state']), NAMES),
    ):
        with pytest.raises(ValueError, match=r"Invalid relative_step=False\. Must be True, as in torch's Adafactor"):
            act()
    still = copy.deepcopy(state_of(RECORDS['Rprop']['state']))
    still['param_groups'][0]['lr'] = 0.0
    with pytest.raises(ValueError, match=r'Invalid lr=0 of a group\. Must be > 0'):
        bo.Rprop().register_trainable_weights(weights()).load_torch_state_dict(still, NAMES)
    with pytest.raises(ValueError, match=r'Lion has no counterpart in torch\.optim'):
        bo.Lion().register_trainable_weights(weights()).torch_state_dict(NAMES)
    with pytest.raises(ValueError, match='must be called before loading'):
        bo.Adam().torch_state_dict(NAMES)
    groups = bo.Adam().register_trainable_weights({'w': weights()['w']})
    groups.add_param_group({'b': weights()['b']})
    with pytest.raises(ValueError, match=r"The groups differ: \[\['b', 'w'\]\] there, \[\['w'\], \['b'\]\] here"):
        groups.load_torch_state_dict(torch_adam(), NAMES)
