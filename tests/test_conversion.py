"""Runs of torch, optax and braintools.optim go on here as they would have gone on there; and back to torch."""

from __future__ import annotations

import copy
import importlib.util
import json
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.record_states import CASES, FILE, GRADIENTS, HALF, START, recorded, torch_run

import braintools_optim as bo

RECORDS = json.loads(FILE.read_text())
HAS_TORCH = importlib.util.find_spec('torch') is not None
NAMES = ['w', 'b']  # torch's order; ours is another one
Path = dict[str, Any]


def state_of(record: Any) -> dict[str, Any]:
    """A recorded state_dict as torch has it, but of arrays."""
    own = {
        int(i): {slot: None if x is None else np.array(x) for slot, x in slots.items()}
        for i, slots in record['state'].items()
    }
    return {'state': own, 'param_groups': record['param_groups']}


def weights(start: Path = START) -> dict[str, brainstate.ParamState]:
    return {name: brainstate.ParamState(jnp.asarray(start[name])) for name in reversed(NAMES)}


def steps(opt: bo.Optimizer, states: dict[str, brainstate.ParamState], first: int, last: int) -> None:
    for t in range(first, last):
        opt.update({name: jnp.asarray(GRADIENTS[name][t]) for name in states})


def assert_at(states: dict[str, brainstate.ParamState], end: Path, start: Path = START) -> None:
    for name, state in states.items():
        travelled = np.max(np.abs(np.asarray(end[name]) - np.asarray(start[name])))
        assert np.max(np.abs(np.asarray(state.value) - np.asarray(end[name]))) < 1e-12 * max(travelled, 1)


def unset(case: str) -> bo.Optimizer:
    """An optimizer of that kind with the same memory, whose numbers are yet to come."""
    name, options = CASES[case]
    flags = {key: options[key] for key in ('amsgrad', 'centered') if key in options}
    flags |= {'momentum': 0.123} if 'momentum' in options else {}
    flags |= {'relative_step': True} if name == 'Adafactor' else {}
    built: bo.Optimizer = getattr(bo, name)(lr=0.456, **flags)
    return built


@pytest.mark.parametrize('case', CASES)
def test_a_run_of_torch_goes_on_here_and_there(case: str) -> None:
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

    steps(opt, states, 0, 1)  # elsewhere, and back
    opt.current_lr = 0.789
    for name, state in states.items():
        state.value = jnp.asarray(record['half'][name])
    opt.load_torch_state_dict(theirs, NAMES)
    steps(opt, states, HALF, 2 * HALF)
    assert_at(states, record['end'])
    if 'SGD' not in case:
        assert int(opt.step_count.value) == 2 * HALF


@pytest.mark.skipif(not HAS_TORCH, reason='needs torch')
def test_the_records_are_torchs() -> None:
    now = json.loads(json.dumps(recorded()))
    assert jax.tree.structure(now) == jax.tree.structure(RECORDS)
    for a, b in zip(jax.tree.leaves(now), jax.tree.leaves(RECORDS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9) if isinstance(a, float) else np.testing.assert_equal(a, b)


def test_groups_of_torch_are_matched_by_their_weights() -> None:
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
    ours.weight_decay = 0.2  # acts on the group whose own it is not
    assert [group['weight_decay'] for group in ours.param_groups] == [0.5, 0.2]


def test_bfloat16_and_cuda_tensors_are_only_asked_for_numbers() -> None:
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
    'a flag with memory': ({'group': {'amsgrad': True}}, NAMES, 'amsgrad.*cannot be assigned'),
    'more memory': ({'slots': {'max_exp_avg_sq': np.ones((2, 3))}}, NAMES, r'max_exp_avg_sq\.w: not here'),
    'less memory': ({'slots': {'exp_avg': None}}, NAMES, r'exp_avg\.w: not there'),
    'an option out of range': ({'group': {'eps': -1.0}}, NAMES, 'Invalid eps=-1'),
    'other numbers': ({'slots': {'exp_avg': np.ones((2, 3), complex)}}, NAMES, r'exp_avg\.w: complex128'),
    'not torch': ({'state': 3, 'param_groups': 0}, NAMES, None),
}


@pytest.mark.parametrize(('changes', 'names', 'match'), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_changes_nothing(changes: dict[str, Any], names: list[str], match: str | None) -> None:
    opt = bo.Adam(bo.StepLR(0.3), betas=(0.5, 0.6)).register_trainable_weights(weights())
    before, own = opt.state_dict(), opt.settings.own
    state = torch_adam(**changes) if match else {'opt_state': ()}
    with pytest.raises(ValueError, match=match or 'Must be torch'):
        opt.load_torch_state_dict(state, names)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))
    assert opt.settings.own == own


def test_options_that_torch_has_not() -> None:
    opt = bo.Adafactor(0.1, beta1=0.5).register_trainable_weights(weights())
    for act in (
        lambda: opt.torch_state_dict(NAMES),
        lambda: opt.load_torch_state_dict(state_of(RECORDS['Adafactor']['state']), NAMES),
    ):
        with pytest.raises(ValueError, match=r"Invalid relative_step=False\. Must be True: torch's Adafactor is so"):
            act()
    still = copy.deepcopy(state_of(RECORDS['Rprop']['state']))
    still['param_groups'][0]['lr'] = 0.0
    with pytest.raises(ValueError, match=r'Invalid lr=0 of a group\. Must be > 0'):
        bo.Rprop().register_trainable_weights(weights()).load_torch_state_dict(still, NAMES)
    with pytest.raises(ValueError, match=r'Lion has no counterpart in torch\.optim\. Must be one of SGD, Momentum'):
        bo.Lion().register_trainable_weights(weights()).torch_state_dict(NAMES)
    with pytest.raises(ValueError, match='must be called first'):
        bo.Adam().torch_state_dict(NAMES)
    groups = bo.Adam().register_trainable_weights({'w': weights()['w']})
    groups.add_param_group({'b': weights()['b']})
    with pytest.raises(ValueError, match=r"The groups differ: \[\['b', 'w'\]\] there, \[\['w'\], \['b'\]\] here"):
        groups.load_torch_state_dict(torch_adam(), NAMES)


# optax

TXS: dict[str, tuple[Any, Any]] = {
    'adam': (lambda: optax.adam(0.01), lambda: bo.Adam(0.01)),
    'adam of a schedule': (
        lambda: optax.adam(optax.linear_schedule(0.1, 0.0, 2 * HALF)),
        lambda: bo.Adam(optax.linear_schedule(0.1, 0.0, 2 * HALF)),
    ),
    'adamw': (lambda: optax.adamw(0.01, weight_decay=0.1), lambda: bo.AdamW(0.01, weight_decay=0.1)),
    'nadamw': (lambda: optax.nadamw(0.01), lambda: bo.NAdamW(0.01)),
    'radam': (lambda: optax.radam(0.01, eps=0.0), lambda: bo.RAdam(0.01, eps=0.0)),
    'lamb': (lambda: optax.lamb(0.01), lambda: bo.Lamb(0.01)),
    'adamax': (lambda: optax.adamax(0.01), lambda: bo.Adamax(0.01)),
    'lion': (lambda: optax.lion(0.01, weight_decay=0.1), lambda: bo.Lion(0.01, weight_decay=0.1)),
    'momentum': (lambda: optax.sgd(0.01, 0.9), lambda: bo.Momentum(0.01)),
    'nesterov': (lambda: optax.sgd(0.01, 0.8, nesterov=True), lambda: bo.SGD(0.01, momentum=0.8, nesterov=True)),
    'sgd of a schedule': (
        lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 2 * HALF)),
        lambda: bo.SGD(optax.linear_schedule(0.1, 0.0, 2 * HALF)),
    ),
    'adagrad': (
        lambda: optax.chain(optax.scale_by_rss(0.1, 0.0), optax.scale(-0.1)),
        lambda: bo.Adagrad(0.1, initial_accumulator_value=0.1, eps=0.0),
    ),
    'rmsprop': (lambda: optax.rmsprop(0.01, 0.9, eps_in_sqrt=False), lambda: bo.RMSprop(0.01, 0.9)),
}


def optax_run(tx: Any, params: Any, state: Any, first: int, last: int) -> tuple[Any, Any]:
    def update(carry: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    gradients = {name: jnp.asarray(g[first:last]) for name, g in GRADIENTS.items()}
    return jax.jit(lambda carry: jax.lax.scan(update, carry, gradients)[0])((params, state))


@pytest.mark.parametrize(('build_tx', 'build'), TXS.values(), ids=TXS)
def test_a_run_of_optax_goes_on_here(build_tx: Any, build: Any) -> None:
    tx, params = build_tx(), {name: jnp.asarray(w) for name, w in START.items()}
    half, state = optax_run(tx, params, tx.init(params), 0, HALF)
    end, _ = optax_run(tx, half, state, HALF, 2 * HALF)
    states = weights(half)
    opt = build().register_trainable_weights(states)
    opt.load_optax_state(state)
    steps(opt, states, HALF, 2 * HALF)
    assert_at(states, end)


def test_trees_of_optax_by_name_and_nested() -> None:
    leaves = {'x': jnp.full(2, 1.0), 'y': jnp.full(3, 2.0)}
    for register, params in [
        ({'a': {'b': brainstate.ParamState(leaves)}}, {'a': {'b': leaves}}),
        ({'a': {'b': brainstate.ParamState(leaves)}}, {'a.b': leaves}),
        ({('a', 'b'): brainstate.ParamState(leaves)}, {('a', 'b'): leaves}),
        ({('a', 'b'): brainstate.ParamState(leaves)}, {'a': {'b': leaves}}),
    ]:
        opt = bo.Lion().register_trainable_weights(register)
        opt.load_optax_state(optax.lion(0.1).init(params)[0]._replace(mu=params, count=7))
        found = opt.opt_state.value['exp_avg']
        assert {name: x.tolist() for name, x in found.items()} == {'a.b.x': [1.0, 1.0], 'a.b.y': [2.0, 2.0, 2.0]}
        assert int(opt.step_count.value) == 7


def test_states_of_optax_that_do_not_fit_change_nothing() -> None:
    params = {name: jnp.asarray(w) for name, w in START.items()}
    adam = optax.adam(0.1).init(params)
    for build, state, match in [
        (bo.Adam, optax.lion(0.1).init(params), 'holds ScaleByLionState, for which Adam has no place'),
        (bo.SGD, adam, 'holds ScaleByAdamState, for which SGD'),
        (bo.Adam, optax.chain(optax.adam(0.1), optax.ema(0.9)).init(params), 'holds EmaState'),
        (bo.Adam, optax.chain(optax.adam(0.1), optax.adam(0.1)).init(params), 'holds ScaleByAdamState twice'),
        (bo.Adam, optax.sgd(0.1).init(params), r'exp_avg\.b: not there'),
        (lambda: bo.Adam(amsgrad=True), adam, r'max_exp_avg_sq\.b: not there'),
        (bo.Adam, optax.adam(0.1).init({**params, 'b': jnp.ones(4)}), r'exp_avg\.b: float64\[4\] there'),
        (bo.Adam, params['b'], 'holds ArrayImpl'),
        (bo.Yogi, adam, 'Yogi has no counterpart in optax. Must be one of Adam, AdamW'),
    ]:
        opt = build().register_trainable_weights(weights())
        before = opt.state_dict()
        with pytest.raises(ValueError, match=match):
            opt.load_optax_state(state)
        assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))
    opt = bo.Adam().register_trainable_weights({'v': brainstate.ParamState(jnp.ones(2) * u.mV)})
    with pytest.raises(ValueError, match=r"The weights \['v'\] have units"):
        opt.load_optax_state(adam)
    with pytest.raises(KeyError, match='missing or None: c'):
        bo.Adam().register_trainable_weights({**weights(), 'c': weights()['b']}).load_optax_state(adam)


# braintools.optim

BRAINTOOLS: dict[str, dict[str, Any]] = {
    'SGD': {},
    'Momentum': {},
    'MomentumNesterov': {},
    'Adam': {'betas': (0.8, 0.95)},
    'AdamW': {'weight_decay': 0.1},
    'Lion': {},
    'Adamax': {},
}


@pytest.mark.parametrize('name', BRAINTOOLS)
def test_a_run_of_braintools_goes_on_here(name: str) -> None:
    braintools = pytest.importorskip('braintools')

    def theirs_at(build: Any) -> Any:
        states = weights()
        opt = build()
        opt.register_trainable_weights(states)
        update = brainstate.transform.jit(lambda g: opt.update(g))
        saved: list[Any] = []
        for t in range(2 * HALF):
            if t == HALF:
                saved += [opt.state_dict(), {key: np.array(state.value) for key, state in states.items()}]
            update({key: jnp.asarray(GRADIENTS[key][t]) for key in states})
        return *saved, {key: np.array(state.value) for key, state in states.items()}

    state, half, end = theirs_at(lambda: getattr(braintools.optim, name)(lr=0.01, **BRAINTOOLS[name]))
    states = weights(half)
    opt = getattr(bo, name)(lr=0.3, **BRAINTOOLS[name]).register_trainable_weights(states)
    opt.load_braintools_state_dict(state)
    assert (opt.current_lr, int(opt.step_count.value)) == (0.01, HALF)
    steps(opt, states, HALF, 2 * HALF)
    assert_at(states, end)


def test_states_of_braintools_that_lack_something() -> None:
    adam = optax.adam(0.1).init({name: jnp.asarray(w) for name, w in START.items()})
    good = {'opt_state': adam, 'step_count': 3, 'lr': 0.1, 'param_groups_opt_states': {}}
    for state, match in [
        ({'opt_state': adam}, "with 'opt_state', 'step_count' and 'lr'"),
        ({**good, 'opt_state': None}, 'before weights were registered: it holds no memory'),
        ({**good, 'param_groups_opt_states': {'0': adam}}, 'groups that were added, whose options it does not hold'),
        ({**good, 'lr': -1.0}, 'Invalid lr=-1'),
    ]:
        opt = bo.Adam().register_trainable_weights(weights())
        before = opt.state_dict()
        with pytest.raises(ValueError, match=match):
            opt.load_braintools_state_dict(state)
        assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))
    opt.load_braintools_state_dict(good)
    assert int(opt.step_count.value) == 3
