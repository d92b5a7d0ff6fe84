"""Properties of any model under any optimizer with any options, drawn by hypothesis."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import assert_same, everything
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from internals import GroupRule, flatten_states, update_counts, weights_by_name
from tables.optimizers import STANDALONE, row_of

import braintools_optim as bo
from braintools_optim import constraints

BUILDERS: dict[str, Callable[..., bo.Optimizer]] = {
    **{optimizer.__name__: optimizer for optimizer in STANDALONE if row_of(optimizer).kind != 'loss'},
    'LBFGS': bo.LBFGS,
    'Lookahead': lambda lr, **options: bo.Lookahead(optax.adam(0.1), 2, lr=lr, **options),
    'OptaxOptimizer': lambda lr, **options: bo.OptaxOptimizer(optax.adamw(0.1), lr, **options),
}
DECAYS = {name for name in BUILDERS if name not in ('Rprop', 'Fromage', 'LBFGS')}
UNITS = {'w': u.UNITLESS, 'voltage': u.mV, 'tau': u.ms}
DTYPES = ['float16', 'bfloat16', 'float32', 'float64', 'complex64']


@st.composite
def values(draw: Any, dtypes: Any = DTYPES) -> Any:
    """Draw what a State may hold: an array, a Quantity, or a container of them."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.sampled_from([(), (1,), (3,), (0,), (2, 3), (0, 2), (2, 1, 2)]))
    start = 0.25 + np.arange(np.prod(shape, dtype=int)).reshape(shape) / 4
    leaf = jnp.asarray(start * (1 - 0.5j) if dtype == 'complex64' else start, dtype)
    unit = draw(st.sampled_from(['w', 'w', 'voltage', 'tau']))
    leaf = leaf if unit == 'w' else leaf * UNITS[unit]
    return draw(st.sampled_from([leaf, leaf, {'kernel': leaf, 'bias': leaf}, {'pair': (leaf, leaf)}]))


STATES = values().map(brainstate.ParamState)
TREES = st.recursive(
    STATES,
    lambda tree: (
        st.dictionaries(st.sampled_from('abcd'), tree, min_size=1, max_size=3)
        | st.lists(tree, min_size=1, max_size=2)
        | st.tuples(tree, tree)
    ),
    max_leaves=3,
).map(lambda tree: {'root': tree})
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        'grad_clip_norm': st.sampled_from([0.01, 1e3]),
        'grad_clip_value': st.just(0.3),
        'grad_clip_over': st.sampled_from(['group', 'weight']),
        'grad_clip_adaptive': st.just(0.1),
        'groups': st.sampled_from([{'kernel': {'lr': 0.02}}, {lambda name, w: w.ndim > 1: {'lr_scale': 0.5}}]),
        'no_decay': st.sampled_from([bo.usual_exclusions, lambda name, w: 'a' in name]),
        'weight_decay': st.just(0.1),
        'on_nonfinite': st.sampled_from(['skip', 'zero', 'raise']),
        'state_dtype': st.sampled_from(['bfloat16', 'float32']),
        'rounding': st.just('stochastic'),
        'master_weights': st.just(True),
        'loss_scale': st.sampled_from([4.0, 'dynamic']),
        'metrics': st.just(True),
        'maximize': st.just(True),
        'cautious': st.just(True),
        'grokfast': st.just(0.5),
        'constraints': st.sampled_from([constraints.box(-40, 40), constraints.unit_norm(), constraints.keep_zeros()]),
    },
)


def build(name: str, options: dict[str, Any], tree: Any) -> bo.Optimizer:
    """Build an optimizer of these weights; options that it does not have are left out."""
    options = {'norm_unit': 'own', **options}
    if name not in DECAYS:
        options.pop('weight_decay', None)
    if name in ('LBFGS', 'Lookahead', 'OptaxOptimizer'):  # optax has their state
        options.pop('state_dtype', None)
    if options.get('loss_scale') == 'dynamic':
        options['loss_scale'] = bo.DynamicLossScale(4.0, growth_interval=2)
    if 'constraints' in options:
        real = lambda name, w: not jnp.iscomplexobj(u.get_mantissa(w))  # noqa: E731
        options['constraints'] = {real: options['constraints']}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of groups without a weight
        return BUILDERS[name](lr=bo.StepLR(0.05, 2, 0.5), **options).register_trainable_weights(tree)


def gradients(tree: Any, t: int, scale: float = 1.0) -> Any:
    """Gradients with the structure, units and dtypes of the weights."""

    def slope(w: Any) -> Any:
        w, unit = u.get_mantissa(w), u.get_unit(w)
        g = scale * np.sin(1.0 + t + np.arange(w.size).reshape(w.shape))
        g = jnp.asarray(g * (1 + 0.5j) if jnp.iscomplexobj(w) else g, w.dtype)
        return g if unit == u.UNITLESS else g * unit

    is_state = lambda x: isinstance(x, brainstate.State)  # noqa: E731
    is_quantity = lambda x: isinstance(x, u.Quantity)  # noqa: E731
    return jax.tree.map(lambda s: jax.tree.map(slope, s.value, is_leaf=is_quantity), tree, is_leaf=is_state)


def scale_of(optimizer: bo.Optimizer) -> float:
    scale = optimizer.loss_scale
    return scale.current if isinstance(scale, bo.DynamicLossScale) else scale or 1.0


def form(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(
        [state.value for _, state in flatten_states(tree)]
    )  # units are part of the structure
    return structure, [(x.shape, x.dtype) for x in leaves]


def assert_finite(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf, np.complex128)).all()


def check_refusals(optimizer: bo.Optimizer, tree: Any, grads: Any) -> None:
    """Check that calls that are wrong for any optimizer change nothing."""
    before = everything(optimizer, tree)
    for call in (
        lambda: optimizer.update({}),
        lambda: optimizer.update({**grads, 'extra': jnp.ones(1)}),
        lambda: optimizer.update(jax.tree.map(lambda g: jnp.ones((7, 7)), grads)),
        lambda: optimizer.add_param_group(tree),
        lambda: optimizer.add_param_group({'late': brainstate.ParamState(jnp.ones(1))}, lr=-1.0),
        lambda: optimizer.freeze('no such weight'),
        lambda: setattr(optimizer, 'lr', -1.0),
        lambda: setattr(optimizer, 'weigth_decay', 0.1),
        lambda: optimizer.load_state_dict({**optimizer.state_dict(), 'opt_state': {}, 'states': {}}),
    ):
        with pytest.raises((TypeError, ValueError, KeyError, AttributeError)):
            call()
    assert_same(before, everything(optimizer, tree))


PROPERTY = settings(
    max_examples=9,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # shrinking takes minutes
)
CASES = {'name': st.sampled_from(sorted(BUILDERS)), 'options': OPTIONS}


def copied(tree: Any) -> Any:
    is_state = lambda x: isinstance(x, brainstate.State)  # noqa: E731
    return jax.tree.map(lambda s: brainstate.ParamState(jax.tree.map(jnp.array, s.value)), tree, is_leaf=is_state)


@pytest.mark.slow
@PROPERTY
@given(tree=TREES, **CASES)
def test_random_run_is_finite_and_resumes_bit_for_bit(tree: Any, name: str, options: dict[str, Any]) -> None:
    """A run with a wrong call, a checkpoint, a new group and a frozen weight stays finite and resumes exactly."""
    tree = copied(tree)  # sorted as jax does
    tied = {'tied': next(iter(flatten_states(tree)))[1]}
    with jax.disable_jit():
        first = build(name, options, {**tree, **tied})
        before = form(tree)
        for t in range(2):
            first.update(gradients(tree, t, scale_of(first)))
            first.lr.step()
        check_refusals(first, tree, gradients(tree, 0))
        state, twin = first.state_dict(), copied(tree)
        second = build(name, options, {**twin, 'tied': next(iter(flatten_states(twin)))[1]})
        assert second.load_state_dict(state) == []
        for optimizer, model in ((first, tree), (second, twin)):
            late = {'late': brainstate.ParamState({'x': jnp.ones((2, 2)), 'y': jnp.ones((), 'bfloat16')})}
            optimizer.add_param_group(late, lr=0.02, maximize=True)
            model.update(late)
            optimizer.update(gradients(model, 2, scale_of(optimizer)))
            frozen = optimizer.weight_names[0]
            optimizer.freeze(frozen)
            held = np.array(u.get_mantissa(weights_by_name(optimizer)[frozen]))
            optimizer.update(gradients(model, 3, scale_of(optimizer)))
            np.testing.assert_array_equal(held, u.get_mantissa(weights_by_name(optimizer)[frozen]))
            optimizer.unfreeze(frozen)
            if not isinstance(optimizer, GroupRule):
                only = gradients({'late': late['late']}, 4, scale_of(optimizer))
                held = np.array(u.get_mantissa(weights_by_name(optimizer)[frozen]))
                optimizer.update(only, partial=True)
                np.testing.assert_array_equal(held, u.get_mantissa(weights_by_name(optimizer)[frozen]))
            optimizer.update(gradients(model, 5, scale_of(optimizer)))
    assert_same(everything(first, tree), everything(second, twin))
    assert form({key: x for key, x in tree.items() if key != 'late'}) == before
    if name != 'LBFGS':  # without a line search, L-BFGS may diverge on gradients of no function
        assert_finite([first.opt_state.value, everything(first, tree)[1]])
    counts = update_counts(first)
    assert counts['late.x'] == counts['late.y'] == (4 if not isinstance(first, GroupRule) else 3)


@pytest.mark.slow
@settings(PROPERTY, max_examples=4)
@given(tree=TREES, **CASES)
def test_random_eager_compiled_and_looped_runs_agree(tree: Any, name: str, options: dict[str, Any]) -> None:
    ways: list[Callable[[Any, Any], None]] = [
        lambda update, steps: [update(g) for g in steps],
        lambda update, steps: [brainstate.transform.jit(update)(g) for g in steps],
        lambda update, steps: brainstate.transform.for_loop(update, jax.tree.map(lambda *g: jnp.stack(g), *steps)),
    ]
    results = []
    for way in ways[:: 2 if 'metrics' in options else 1]:
        own = copied(tree)
        optimizer = build(name, options, own)
        steps = [gradients(own, t, scale_of(optimizer)) for t in range(2)]
        way(optimizer.update, steps)
        results.append(everything(optimizer, own))
    for other in results[1:]:
        assert_same(results[0], other, rtol=2e-2 if HALF & dtypes(tree, options) else 2e-5, atol=1e-5)


HALF = {'float16', 'bfloat16'}


def dtypes(tree: Any, options: dict[str, Any]) -> set[str]:
    leaves = jax.tree.leaves([s.value for _, s in flatten_states(tree)])
    return {str(leaf.dtype) for leaf in leaves} | {options.get('state_dtype', '')}


@pytest.mark.slow
@settings(PROPERTY, max_examples=8)
@given(tree=TREES, bad=st.sampled_from([np.nan, np.inf, -np.inf]), **CASES)
def test_random_run_with_nonfinite_gradients(tree: Any, bad: float, name: str, options: dict[str, Any]) -> None:
    """A skipped or refused update changes only the count of skips; zeroed gradients keep everything finite."""
    with jax.disable_jit():
        for policy in ('skip', 'zero', 'raise'):
            model = copied(tree)
            optimizer = build(name, {**options, 'on_nonfinite': policy}, model)
            optimizer.update(gradients(model, 0, scale_of(optimizer)))
            before = everything(optimizer, model)
            poisoned = jax.tree.map(lambda g: g.at[...].set(bad) if g.size else g, gradients(model, 1))
            size = sum(g.size for g in jax.tree.leaves(poisoned))
            dynamic = isinstance(optimizer.loss_scale, bo.DynamicLossScale)
            if policy == 'raise' and size and not dynamic:
                with pytest.raises(FloatingPointError, match='not finite'):
                    optimizer.update(poisoned)
                assert_same(before, everything(optimizer, model))
            else:
                optimizer.update(poisoned)
            if size and (policy == 'skip' or dynamic):
                assert_same(before[1], everything(optimizer, model)[1])
                assert int(optimizer.skipped_count) == 1
            optimizer.update(gradients(model, 2, scale_of(optimizer)))
            own, weights = everything(optimizer, model)
            assert_finite([own['opt_state'], weights])
