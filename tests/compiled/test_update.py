"""One update gives the same numbers wherever it is called from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import COMPILATIONS
from helpers import thinned, update
from hypothesis import given, settings
from hypothesis import strategies as st
from models import all_states, assert_same, nested_gradients, nested_model
from tables.optimizers import COMMON, ROWS, STANDALONE

import braintools_optim as bo
from braintools_optim import rules

every_optimizer = pytest.mark.parametrize('optimizer', COMMON, ids=lambda o: o.__name__)
transform = brainstate.transform


def in_jit(update: Callable[[Any], None], steps: list[Any]) -> None:
    compiled = transform.jit(update)
    for g in steps:
        compiled(g)


def in_for_loop(update: Callable[[Any], None], steps: list[Any]) -> None:
    transform.for_loop(update, jax.tree.map(lambda *g: jnp.stack(g), *steps))


def in_scan(update: Callable[[Any], None], steps: list[Any]) -> None:
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *steps)
    transform.scan(lambda carry, g: (carry + 1, update(g)), 0, stacked)


def in_cond(update: Callable[[Any], None], steps: list[Any]) -> None:
    for g in steps:
        transform.cond(jnp.asarray(True), lambda g=g: update(g), lambda: None)
        transform.cond(jnp.asarray(False), lambda g=g: update(g), lambda: None)


@every_optimizer
@pytest.mark.parametrize(
    'call', [in_jit, in_for_loop, *(pytest.param(call, marks=pytest.mark.slow) for call in (in_scan, in_cond))]
)
def test_update_inside_a_transformation_equals_eager(optimizer: type[bo.Optimizer], call: Callable[..., None]) -> None:
    results = []
    for run in (lambda update, steps: [update(g) for g in steps], call):
        states = nested_model()
        opt = optimizer(lr=bo.StepLR(0.1, 2, 0.5), grad_clip_norm=1.0, grad_clip_value=0.4)
        opt.register_trainable_weights(states)

        def update(g: Any, opt: bo.Optimizer = opt) -> None:
            opt.update(g)
            opt.lr.step()

        run(update, [nested_gradients(t) for t in range(3)])
        results.append(all_states(opt, states))
    assert_same(*results, rtol=1e-5, atol=1e-6)


@thinned(COMMON, 'optimizer')
def test_vmap_updates_an_ensemble(optimizer: type[bo.Optimizer]) -> None:
    rates, slopes = jnp.array([0.1, 0.2, 0.3]), jnp.array([[1.0, -2.0], [3.0, 0.5], [0.2, 0.7]])
    built: dict[str, Any] = {}

    @transform.vmap_new_states(state_tag='new', axis_size=3)
    def build() -> None:
        built['w'] = brainstate.ParamState(jnp.ones(2))
        built['optimizer'] = optimizer(lr=0.1).register_trainable_weights({'w': built['w']})

    build()

    @transform.vmap2(state_in_axes={0: brainstate.util.filter.OfType(brainstate.State)}, in_axes=0)
    def update(rate: Any, g: Any) -> None:
        built['optimizer'].lr = rate
        built['optimizer'].update({'w': g})

    update(rates, slopes)
    update(rates, slopes)
    for i, rate in enumerate(rates):
        w = brainstate.ParamState(jnp.ones(2))
        alone = optimizer(lr=float(rate)).register_trainable_weights({'w': w})
        alone.update({'w': slopes[i]})
        alone.update({'w': slopes[i]})
        np.testing.assert_allclose(built['w'].value[i], w.value, rtol=1e-5)


LEAVES = st.sampled_from([(), (1,), (3,), (0,), (2, 3)])
TREES = st.recursive(
    LEAVES,
    lambda t: st.dictionaries(st.sampled_from('abcd'), t, min_size=1, max_size=3) | st.lists(t, min_size=1, max_size=2),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(TREES, st.sampled_from([jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]))
def test_trees_of_any_dtype_update_like_single_leaves(tree: Any, dtype: Any) -> None:
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    states = jax.tree.map(lambda s: brainstate.ParamState(jnp.full(s, 1.5, dtype)), {'root': tree}, is_leaf=is_shape)
    grads = jax.tree.map(lambda s: jnp.full(s, 0.5, dtype), {'root': tree}, is_leaf=is_shape)
    with jax.disable_jit():
        bo.SGD(lr=0.5, momentum=0.5).register_trainable_weights(states).update(grads)
    for state in jax.tree.leaves(states, is_leaf=lambda x: isinstance(x, brainstate.State)):
        assert state.value.dtype == dtype
        np.testing.assert_array_equal(np.asarray(state.value, np.float64), 1.25)


@pytest.mark.parametrize('optimizer', [bo.SGD, bo.Adam, bo.OptaxOptimizer], ids=lambda o: o.__name__)
def test_minimize_equals_gradient_and_update(optimizer: Any) -> None:
    target = jnp.array([1.0, 2.0])
    weights = [brainstate.ParamState(jnp.zeros(2)) for _ in range(2)]
    for w, way in zip(weights, ('minimize', 'update'), strict=True):
        opt = optimizer(lr=0.1).register_trainable_weights({'w': w})

        def loss(scale: Any, w: Any = w) -> Any:
            return scale * jnp.sum((w.value - target) ** 2), w.value

        for scale in (1.0, 2.0):
            if way == 'minimize':
                value, aux = opt.minimize(loss, jnp.asarray(scale), has_aux=True)
                assert value.shape == ()
                assert aux.shape == (2,)
            else:
                opt.update(brainstate.transform.grad(lambda s: loss(s)[0], {'w': w})(scale))
    np.testing.assert_allclose(weights[0].value, weights[1].value, rtol=1e-12)
    with pytest.raises(ValueError, match='before minimize'):
        optimizer(lr=0.1).minimize(loss)


NOT_COMMON = sorted(optimizer.__name__ for optimizer in {*STANDALONE, bo.LBFGS} - {*COMMON})


@pytest.mark.slow
@pytest.mark.parametrize('name', NOT_COMMON)
def test_other_optimizers_eager_compiled_and_resumed_agree(name: str) -> None:
    """Eager and compiled runs agree, later calls compile nothing, dtypes are kept, and a checkpoint resumes exactly."""
    slopes = [np.sin(np.arange(4.0) + t).reshape(2, 2) for t in range(4)]

    def build(values: Any) -> tuple[bo.Optimizer, list[brainstate.ParamState]]:
        states = [brainstate.ParamState(jnp.asarray(v)) for v in values]
        optimizer = getattr(rules, name)(lr=bo.StepLR(0.1, 2, 0.5), grad_clip_norm=1.0)
        return optimizer.register_trainable_weights(states), states

    start = [np.ones((2, 2)), np.ones((2, 2), jnp.bfloat16), np.ones((), np.float32)]
    (eager, ours), (compiled, theirs) = build(start), build(start)
    jitted = brainstate.transform.jit(lambda g: update(compiled, g))
    for t, slope in enumerate(slopes):
        g = [jnp.asarray(slope), jnp.asarray(slope, jnp.bfloat16), jnp.asarray(slope[0, 0], np.float32)]
        before = len(COMPILATIONS)
        update(eager, g)
        jitted(g)
        assert t == 0 or len(COMPILATIONS) == before
        eager.lr.step()
        compiled.lr.step()
        if t == 1:
            saved, weights = eager.state_dict(), [np.array(state.value) for state in ours]
        if t == 2:
            resumed, again = build(weights)
            resumed.load_state_dict(saved)
            update(resumed, g)
            for one, other in zip(again, ours, strict=True):
                np.testing.assert_array_equal(np.array(one.value), np.array(other.value))
    for one, other, initial in zip(ours, theirs, start, strict=True):
        assert one.value.dtype == initial.dtype
        np.testing.assert_allclose(np.asarray(one.value, float), np.asarray(other.value, float), rtol=1e-2)
    np.testing.assert_allclose(ours[0].value, theirs[0].value, rtol=1e-9)


LEAFWISE = [row.optimizer for row in ROWS if row.kind == 'leafwise']


@thinned(LEAFWISE, 'rule', 6)
def test_many_leaves_are_updated_like_few(rule: type[bo.Optimizer]) -> None:
    """Scalars are passed differently to many leaves, and XLA compiles them with other options."""
    few = {'a': jnp.array([0.5, -1.5]), 'b': jnp.arange(6.0).reshape(2, 3) - 2.5, 'c': jnp.array([2.0])}
    many = {f'{name}{i}': w for i in range(4) for name, w in few.items()}
    paths = []
    for start in (few, many):
        weights = {name: brainstate.ParamState(w) for name, w in start.items()}
        options = {'weight_decay': 0.01} if 'weight_decay' in inspect.signature(rule).parameters else {}
        optimizer = rule(grad_clip_value=0.5, **options).register_trainable_weights(weights)
        for step in range(6):
            optimizer.update({name: jnp.cos(w.value + step) for name, w in weights.items()})
        paths.append({name: w.value for name, w in weights.items()})
    for name, w in paths[1].items():
        np.testing.assert_allclose(w, paths[0][name[0]], rtol=1e-12, atol=1e-14)
