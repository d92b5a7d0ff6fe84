"""Different weights, different treatment: groups, freezing, masks, constraints, clipping, partial updates."""

from __future__ import annotations

from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations

import braintools_optim as bo
from braintools_optim import constraints

START = {'a.weight': [[1.0, -2.0], [0.5, 3.0]], 'a.bias': [0.5, -1.0], 'b.weight': [[2.0, 0.0]], 'b.tau': 5.0}
RULES = [bo.SGD, bo.Momentum, bo.Adam, bo.AdamW, bo.Lamb, bo.Lion, bo.Adafactor, bo.OptaxOptimizer, bo.LBFGS]
every_rule = pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)


def model() -> dict[Any, brainstate.ParamState]:
    """Four leaves in two States of dicts, under tuple paths, as modules have them."""
    value = {name: jnp.asarray(w) for name, w in START.items()}
    return {
        ('a',): brainstate.ParamState({'weight': value['a.weight'], 'bias': value['a.bias']}),
        ('b',): brainstate.ParamState({'weight': value['b.weight'], 'tau': value['b.tau']}),
    }


def flat(states: Any) -> dict[str, np.ndarray]:
    return {f'{path[0]}.{name}': np.array(x) for path, state in states.items() for name, x in state.value.items()}


def slopes(t: int, *without: str) -> Any:
    """Gradients of the t-th update; None for those left out."""
    rng = np.random.default_rng(t)
    g = {name: rng.normal(size=np.shape(w)) for name, w in START.items()}
    leaf = lambda name: None if name in without else jnp.asarray(g[name])  # noqa: E731
    return {
        ('a',): {'weight': leaf('a.weight'), 'bias': leaf('a.bias')},
        ('b',): {'weight': leaf('b.weight'), 'tau': leaf('b.tau')},
    }


def run(optimizer: bo.Optimizer, steps: int = 4, **update: Any) -> dict[str, np.ndarray]:
    states = model()
    optimizer.register_trainable_weights(states)
    for t in range(steps):
        optimizer.update(slopes(t), **update)
    return flat(states)


# groups


def test_groups_by_predicate_are_those_added_by_hand() -> None:
    options = {'a.*': {'lr': 0.3, 'betas': (0.5, 0.9)}, lambda name, w: w.ndim == 0: {'lr_scale': 0.1, 'amsgrad': True}}
    chosen = bo.Adam(bo.StepLR(0.1, 2, 0.5), grad_clip_norm=1.0, groups=options)
    by_hand = bo.Adam(bo.StepLR(0.1, 2, 0.5), grad_clip_norm=1.0)
    ours = run(chosen)
    assert [chosen.group_names(i) for i in range(3)] == [['b.weight'], ['a.bias', 'a.weight'], ['b.tau']]
    assert list(chosen.param_groups[1]['params']) == ['a.bias', 'a.weight']
    states = {name: brainstate.ParamState(jnp.asarray(w)) for name, w in START.items()}
    by_hand.register_trainable_weights({'b.weight': states['b.weight']})
    by_hand.add_param_group({name: states[name] for name in ('a.weight', 'a.bias')}, lr=0.3, betas=(0.5, 0.9))
    by_hand.add_param_group({'b.tau': states['b.tau']}, lr_scale=0.1, amsgrad=True)
    for t in range(4):
        by_hand.update({f'{path[0]}.{name}': g for path, own in slopes(t).items() for name, g in own.items()})
    for name, w in ours.items():
        np.testing.assert_allclose(w, states[name].value, rtol=1e-12, err_msg=name)


def test_the_first_predicate_takes_a_weight_and_every_weight_may_be_taken() -> None:
    opt = bo.SGD(1.0, groups={'weight': {'lr_scale': 0.5}, '*': {'lr_scale': 0.0}, 'none': {}})
    with pytest.warns(UserWarning, match=r"No weight is chosen by groups\['none'\]"):
        after = run(opt, 1)
    assert opt.group_names(0) == []
    np.testing.assert_array_equal(after['a.bias'], START['a.bias'])
    np.testing.assert_allclose(after['a.weight'], np.array(START['a.weight']) - 0.5 * slopes(0)['a',]['weight'])
    assert opt.current_lr == 1.0


def test_wrong_groups_change_nothing() -> None:
    for groups, error, match in (
        ({'a.*': {'beta': 0.5}}, TypeError, r"Unknown options of a group: \['beta'\]\. Must be among \['amsgrad', "),
        ({'a.*': {'lr': 0.1}, 'b.*': {'eps': -1.0}}, ValueError, 'Invalid eps=-1'),
    ):
        opt = bo.Adam(0.1, groups=groups)
        with pytest.raises(error, match=match):
            opt.register_trainable_weights(model())
        assert opt.opt_state is None
        assert opt.param_groups == []
        assert len(opt.param_states) == 0


def test_one_weight_in_two_groups_is_an_error_that_names_both() -> None:
    w = brainstate.ParamState(jnp.ones(2))
    opt = bo.SGD(0.1, grad_clip_norm=1.0).register_trainable_weights({'encoder': w, 'decoder': w})
    with pytest.raises(ValueError, match='head is registered already, as encoder'):
        opt.add_param_group({'head': w})
    opt.update({'encoder': jnp.array([3.0, 4.0])})  # and counts once in the norm
    np.testing.assert_allclose(w.value, 1 - 0.1 * np.array([0.6, 0.8]), rtol=1e-6)


# freezing


@every_rule
def test_frozen_weights_are_as_if_they_were_not_there(rule: type[bo.Optimizer]) -> None:
    options = {'lr': 0.1, 'grad_clip_norm': 0.5} | ({} if rule is bo.LBFGS else {'weight_decay': 0.1})
    states, alone = model(), model()
    frozen = rule(**options)
    frozen.freeze('b.*')
    frozen.register_trainable_weights(states)
    only = rule(**options).register_trainable_weights({('a',): alone['a',]})
    for t in range(4):
        frozen.update(slopes(t) if t % 2 else {('a',): slopes(t)['a',]})  # their gradients may be there or not
        only.update({('a',): slopes(t)['a',]})
    assert flat(states)['b.tau'] == 5.0
    for name in ('a.weight', 'a.bias'):
        np.testing.assert_allclose(flat(states)[name], flat(alone)[name], rtol=1e-12, err_msg=name)
    assert all(
        'b.tau' not in leaves
        for slot, leaves in frozen.opt_state.value.items()
        if slot not in ('step', 'skipped', 'tree')
    )


def test_freezing_and_unfreezing_acts_in_compiled_functions_and_keeps_the_memory() -> None:
    states = model()
    opt = bo.Adam(0.1).register_trainable_weights(states)
    update = brainstate.transform.jit(lambda g: opt.update(g))
    g = slopes(0)
    update(g)
    opt.freeze('tau')
    update(g)
    before, memory = flat(states), np.array(opt.opt_state.value['exp_avg']['b.tau'])
    with compilations(0):
        update(g)
    assert flat(states)['b.tau'] == before['b.tau']
    assert (flat(states)['a.bias'] != before['a.bias']).all()
    opt.unfreeze('tau')
    with compilations(0):  # this has been compiled before
        update(g)
    assert flat(states)['b.tau'] != before['b.tau']
    assert dict(zip(opt.weight_names, opt.opt_state.value['step'].tolist(), strict=True))['b.tau'] == 2
    np.testing.assert_allclose(opt.opt_state.value['exp_avg']['b.tau'], 0.9 * memory + 0.1 * g['b',]['tau'])


def test_weights_frozen_from_the_start_begin_when_they_are_unfrozen() -> None:
    opt = bo.Adam(0.1)
    opt.freeze('a.weight')
    opt.unfreeze('a.*')
    opt.freeze(lambda name, w: w.ndim == 1)
    opt.register_trainable_weights(model())
    assert opt.opt_state.value['exp_avg'].keys() == {'a.weight', 'b.weight', 'b.tau'}
    opt.update(slopes(0))
    opt.unfreeze('bias')
    opt.update(slopes(1))
    assert dict(zip(opt.weight_names, opt.opt_state.value['step'].tolist(), strict=True))['a.bias'] == 1
    opt.freeze('bias')
    assert 'a.bias' in opt.opt_state.value['exp_avg']  # it has something to remember now
    with pytest.raises(ValueError, match=r"No weight is chosen by 'biases'\. There are: a\.bias, a\.weight"):
        opt.freeze('biases')
    with pytest.raises(ValueError, match='inside a transformation'):
        brainstate.transform.jit(lambda: opt.freeze('bias'))()


# decay


@pytest.mark.parametrize(
    ('rule', 'options'),
    [(bo.SGD, {}), (bo.AdamW, {}), (bo.Adam, {}), (bo.Lamb, {}), (bo.NAdamW, {}), (bo.OptaxOptimizer, {})],
)
def test_no_decay_is_a_group_without_decay(rule: Any, options: dict[str, Any]) -> None:
    masked = run(rule(0.1, weight_decay=0.5, no_decay=bo.usual_exclusions) if rule is not bo.OptaxOptimizer
                 else rule(lr=0.1, weight_decay=0.5, no_decay=bo.usual_exclusions))  # fmt: skip
    groups = {bo.usual_exclusions: {'weight_decay': 0.0}}
    grouped = run(rule(lr=0.1, weight_decay=0.5, groups=groups))
    decayed = run(rule(lr=0.1, weight_decay=0.5))
    for name, w in masked.items():
        np.testing.assert_allclose(w, grouped[name], rtol=1e-12, err_msg=name)
        assert (w == decayed[name]).all() == (name in ('a.weight', 'b.weight')), name


def test_the_usual_exclusions() -> None:
    square = jnp.ones((2, 2))
    for name in ('norm.weight', 'layers.0.bias', 'tau', 'cell.tau_m', 'cell.V_th', 'cell.threshold', 'bn.scale'):
        assert bo.usual_exclusions(name, square), name
    for name in ('layers.0.weight', 'normal.weight', 'biased', 'recurrent.tauto'):
        assert not bo.usual_exclusions(name, square), name
    assert bo.usual_exclusions('w', jnp.ones(3))


# constraints


def l1(w: Any, axis: Any = None) -> Any:
    return jnp.sum(w, axis)


HOLDS = {
    'non_negative': (constraints.non_negative(), lambda w, first: (w >= 0).all()),
    'box': (constraints.box(-0.25, 0.5), lambda w, first: ((w >= -0.25) & (w <= 0.5)).all()),
    'floor': (constraints.box(lower=0.125), lambda w, first: (w >= 0.125).all()),
    'unit_norm': (constraints.unit_norm(), lambda w, first: abs(np.linalg.norm(w) - 1) < 1e-6),
    'unit_rows': (constraints.unit_norm(1), lambda w, first: (abs(np.linalg.norm(w, axis=1) - 1) < 1e-6).all()),
    'simplex': (constraints.simplex(), lambda w, first: (w >= 0).all() and abs(w.sum() - 1) < 1e-6),
    'simplex_columns': (constraints.simplex(0), lambda w, first: (w >= 0).all() and (abs(w.sum(0) - 1) < 1e-6).all()),
    'keep_sign': (constraints.keep_sign(), lambda w, first: (w * first >= 0).all() and (w[first == 0] == 0).all()),
    'Dale': (constraints.keep_sign([[1], [-1]]), lambda w, first: (w[0] >= 0).all() and (w[1] <= 0).all()),
    'keep_zeros': (constraints.keep_zeros(), lambda w, first: (w[first == 0] == 0).all()),
    'mask': (constraints.keep_zeros([True, False, True]), lambda w, first: (w[:, 1] == 0).all()),
    'own': (lambda w: jnp.round(w, 1), lambda w, first: np.allclose(w, np.round(w, 1))),
}


@pytest.mark.parametrize('name', HOLDS)
@pytest.mark.parametrize('unit', [None, u.mV], ids=['plain', 'mV'])
def test_constraints_hold_after_every_update_and_leave_the_memory_alone(name: str, unit: Any) -> None:
    constraint, holds = HOLDS[name]
    first = np.array([[0.5, -0.25, 0.0], [-1.0, 0.75, 0.125]])
    wear = (lambda x: x * unit) if unit else (lambda x: x)
    states = [brainstate.ParamState({'w': wear(jnp.asarray(first, jnp.float32))}) for _ in range(2)]
    free, bounded = bo.Momentum(0.3), bo.Momentum(0.3, constraints={'w': constraint})
    with jax.disable_jit():
        for opt, state in zip((free, bounded), states, strict=True):
            opt.register_trainable_weights({'layer': state})
        for t in range(6):
            g = {'layer': {'w': wear(jnp.asarray(np.random.default_rng(t).normal(size=first.shape), jnp.float32))}}
            free.update(g)
            bounded.update(g)
            assert holds(np.asarray(u.get_mantissa(states[1].value['w'])), first), t
    assert (u.get_mantissa(states[0].value['w']) != u.get_mantissa(states[1].value['w'])).any()
    assert states[1].value['w'].dtype == jnp.float32
    memories = [opt.opt_state.value['momentum_buffer']['layer.w'] for opt in (free, bounded)]
    np.testing.assert_array_equal(*memories)


@pytest.mark.parametrize('rule', [bo.Adam, bo.LBFGS, bo.Lookahead])
def test_constraints_hold_compiled_in_half_precision_and_several_at_once(rule: Any) -> None:
    opt = rule(**({'base_optimizer': optax.sgd(0.5)} if rule is bo.Lookahead else {'lr': 0.5}),
               constraints={'w': constraints.box(0.0, 0.3), '*': constraints.keep_zeros([1, 0, 1])})  # fmt: skip
    w = brainstate.ParamState(jnp.full(3, 0.2, jnp.bfloat16))
    opt.register_trainable_weights({'w': w})
    update = brainstate.transform.jit(lambda g: opt.update({'w': g}))
    for slope in (-1.0, 1.0, -3.0):
        update(jnp.full(3, slope, jnp.bfloat16))
        assert ((w.value >= 0) & (w.value <= jnp.bfloat16(0.3)))[jnp.array([0, 2])].all()
        assert w.value[1] == 0


def test_a_box_in_another_unit_of_the_same_dimension() -> None:
    tau = brainstate.ParamState(5.0 * u.ms)
    opt = bo.SGD(1.0, constraints={'tau': constraints.box(0.004 * u.second, 0.0055 * u.second)})
    opt.register_trainable_weights({'tau': tau})
    opt.update({'tau': -3.0 * u.ms})
    assert abs(tau.value / u.ms - 5.5) < 1e-12


def test_wrong_constraints() -> None:
    real, z = brainstate.ParamState(jnp.ones(2) * u.mV), brainstate.ParamState(jnp.ones(2) * 1j)
    for constraint, state, error, match in (
        (constraints.box(1.0 * u.ms), real, ValueError, 'Must have the dimension of the weight'),
        (jnp.sum, real, ValueError, r'Invalid constraint of w, of shape \[2\]: it makes '),
        (constraints.keep_zeros([1, 0, 1]), real, ValueError, r'Invalid constraint of w, of shape \[2\]: Incompatible'),
        (constraints.non_negative(), z, TypeError, 'Invalid constraint of w, which is complex128'),
    ):
        opt = bo.SGD(0.1, constraints={'w': constraint})
        with pytest.raises(error, match=match):
            opt.register_trainable_weights({'w': state})
        assert opt.opt_state is None
    with pytest.raises(ValueError, match=r'Invalid lower=2\.0 of a box'):
        constraints.box(2.0, 1.0)
    with pytest.raises(ValueError, match='An optax transformation cannot have it'):
        bo.to_optax(bo.SGD(0.1, constraints={'w': constraints.non_negative()}))


# clipping


def clipped(g: Any, limit: float) -> Any:
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in g.values()))
    return {name: x * min(1.0, limit / (norm + 1e-6)) for name, x in g.items()}


def gradients(t: int) -> dict[str, np.ndarray]:
    return {f'{path[0]}.{name}': np.array(g) for path, own in slopes(t).items() for name, g in own.items()}


def test_clipping_over_groups_and_single_weights() -> None:
    g, groups = gradients(0), {'a.*': {}}
    parts = [{k: x for k, x in g.items() if k.startswith(first)} for first in 'ab']
    expected = {
        'all': clipped(g, 0.5),
        'group': clipped(parts[0], 0.5) | clipped(parts[1], 0.5),
        'weight': {name: clipped({name: x}, 0.5)[name] for name, x in g.items()},
    }
    for over, want in expected.items():
        after = run(bo.SGD(1.0, grad_clip_norm=0.5, grad_clip_over=over, groups=groups), 1)
        for name, w in after.items():
            np.testing.assert_allclose(START[name] - w, want[name], rtol=1e-9, err_msg=f'{over} {name}')
    with pytest.raises(ValueError, match=r"Invalid grad_clip_over='each'. Must be one of \('all', 'group', 'weight'\)"):
        bo.SGD(grad_clip_over='each')


def test_adaptive_clipping_is_that_of_optax_and_comes_between_norm_and_value() -> None:
    after = run(bo.SGD(1.0, grad_clip_norm=2.0, grad_clip_adaptive=0.2, grad_clip_value=0.1), 1)
    tx = optax.adaptive_grad_clip(0.2)
    params = {name: jnp.asarray(w) for name, w in START.items()}
    want, _ = tx.update({n: jnp.asarray(g) for n, g in clipped(gradients(0), 2.0).items()}, tx.init(params), params)
    for name, w in after.items():
        np.testing.assert_allclose(START[name] - w, np.clip(want[name], -0.1, 0.1), rtol=1e-9, err_msg=name)


# partial updates


@pytest.mark.parametrize('name', ['SGD', 'Adam', 'RMSprop', 'RAdam'])
def test_partial_updates_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip('torch')
    options = {'momentum': 0.9, 'weight_decay': 0.1} if name in ('SGD', 'RMSprop') else {'weight_decay': 0.1}
    parameters = {k: torch.nn.Parameter(torch.tensor(w, dtype=torch.float64)) for k, w in START.items()}
    theirs = getattr(torch.optim, name)(parameters.values(), lr=0.1, **options)
    states = model()
    ours = getattr(bo, name)(0.1, grad_clip_norm=1.0, **options).register_trainable_weights(states)
    for t, without in enumerate([(), ('a.bias',), ('a.weight', 'b.tau'), tuple(START), ('b.weight',), ()]):
        for key, parameter in parameters.items():
            parameter.grad = None if key in without else torch.tensor(gradients_of(t, key))
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        theirs.step()
        ours.update(slopes(t, *without), partial=True)
        for key, parameter in parameters.items():
            np.testing.assert_allclose(flat(states)[key], parameter.detach(), rtol=1e-12, err_msg=f'{t} {key}')


def gradients_of(t: int, key: str) -> Any:
    return gradients(t)[key]


def test_partial_updates_touch_only_what_is_given() -> None:
    states = model()
    opt = bo.Adam(0.1, weight_decay=0.1).register_trainable_weights(states)
    update = brainstate.transform.jit(lambda g: opt.update(g, partial=True))
    for call in (lambda g: opt.update(g, partial=True), update):
        before, memory = flat(states), jax.tree.map(np.array, opt.opt_state.value)
        call({('a',): slopes(0)['a',], ('unknown',): jnp.ones(3)})
        assert all((w == before[name]).all() == (name[0] == 'b') for name, w in flat(states).items())
        for slot in ('exp_avg', 'exp_avg_sq'):
            np.testing.assert_array_equal(opt.opt_state.value[slot]['b.tau'], memory[slot]['b.tau'])
    counts = dict(zip(opt.weight_names, opt.opt_state.value['step'].tolist(), strict=True))
    assert counts == {'a.bias': 2, 'a.weight': 2, 'b.tau': 0, 'b.weight': 0}
    with pytest.raises(KeyError, match=r'missing or None: b\.tau, b\.weight'):
        opt.update({('a',): slopes(0)['a',]})
    tree_rule = bo.LBFGS().register_trainable_weights(model())
    with pytest.raises(ValueError, match=r'Invalid partial=True\. LBFGS needs the gradients of all weights'):
        tree_rule.update({('a',): slopes(0)['a',]}, partial=True)


# what is seen


def test_what_is_printed() -> None:
    opt = bo.AdamW(0.01, weight_decay=0.1, no_decay='tau', constraints={'b.*': constraints.non_negative()},
                   groups={'bias': {'lr': 0.001}, 'tau': {'betas': (0.5, 0.9), 'lr_scale': 0.1}})  # fmt: skip
    assert str(opt) == 'AdamW: lr 0.01 (ConstantLR), no weights registered'
    opt.freeze('a.weight')
    opt.register_trainable_weights(model())
    assert str(opt).splitlines() == [
        'AdamW: lr 0.01 (ConstantLR)',
        'group  weights             parameters  own options                     frozen  not decayed  constrained',
        '0      a.weight, b.weight  6                                           1 of 2               1 of 2',
        '1      a.bias              2           lr=0.001',
        '2      b.tau               1           betas=(0.5, 0.9), lr_scale=0.1          1 of 1       1 of 1',
    ]


def test_options_that_do_not_exist() -> None:
    with pytest.raises(TypeError, match=r"Adam has no option \['weight_decai'\]\. Must be among \['amsgrad', "):
        bo.Adam(0.1, weight_decai=0.1)
    with pytest.raises(ValueError, match='no_decay of Adam is fixed'):
        bo.Adam(0.1).no_decay = 'bias'
