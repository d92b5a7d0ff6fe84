"""Gradients of any structure and dtype; wrong ones change nothing."""

from __future__ import annotations

from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import slots_of, update_counts
from models import (
    all_states,
    all_values,
    assert_same,
    four_gradients,
    four_leaves,
    nested_gradients,
    nested_model,
    values_by_name,
)
from tables.optimizers import COMMON

import braintools_optim as bo

every_optimizer = pytest.mark.parametrize('optimizer', COMMON, ids=lambda o: o.__name__)
transform = brainstate.transform


def test_gradient_wider_than_its_weight_keeps_its_range() -> None:
    w = brainstate.ParamState(jnp.zeros(1, 'float16'))
    bo.SGD(1e-5).register_trainable_weights({'w': w}).update({'w': jnp.full(1, 1e5, 'float32')})
    np.testing.assert_allclose(w.value, -1.0, rtol=1e-3)


@every_optimizer
@pytest.mark.parametrize(
    'dtype', ['bfloat16', 'float32', *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ('float16', 'float64'))]
)
def test_dtype_and_structure_are_kept(optimizer: type[bo.Optimizer], dtype: str) -> None:
    states = nested_model(dtype)
    opt = optimizer(lr=0.1, grad_clip_norm=1.0).register_trainable_weights(states)
    avals = jax.tree.flatten(jax.tree.map(jax.typeof, all_states(opt, states)))
    for g in (
        nested_gradients(dtype=dtype),
        nested_gradients(dtype='float64'),
    ):  # a wider gradient does not change dtypes
        opt.update(g)
    assert jax.tree.flatten(jax.tree.map(jax.typeof, all_states(opt, states))) == avals
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(all_values(states)))
    assert all(leaf.dtype not in ('float16', 'bfloat16') for leaf in jax.tree.leaves(slots_of(opt)))


@pytest.mark.parametrize('optimizer', [bo.SGD, bo.Adam, bo.RAdam, bo.RMSprop])
def test_complex_weights_are_pairs_of_reals(optimizer: type[bo.Optimizer]) -> None:
    z, pair = (
        brainstate.ParamState(jnp.array([1 + 2j, 3.0])),
        brainstate.ParamState(jnp.array([[1.0, 2.0], [3.0, 0.0]])),
    )
    opt = optimizer(lr=0.1, grad_clip_norm=1.0, grad_clip_value=0.5)
    opt.register_trainable_weights({'z': z})
    real = optimizer(lr=0.1, grad_clip_norm=1.0, grad_clip_value=0.5).register_trainable_weights({'z': pair})
    target, weight = jnp.array([2 + 1j, 3j]), jnp.array([1.0, 0.1])
    for _ in range(3):  # jax returns the conjugate of the gradient
        opt.update(transform.grad(lambda: jnp.sum(weight * jnp.abs(z.value - target) ** 2), {'z': z})())
        parts = lambda: pair.value - jnp.stack([target.real, target.imag], -1)  # noqa: E731
        real.update(transform.grad(lambda: jnp.sum(weight[:, None] * parts() ** 2), {'z': pair})())  # noqa: B023
    np.testing.assert_allclose(np.stack([z.value.real, z.value.imag], -1), pair.value, rtol=1e-12)


WRONG = [
    (
        lambda g: {('scale',): g[('scale',)]},
        KeyError,
        r'missing or None: layers\.0\.weight\.bias, layers\.0\.weight\.weight',
    ),
    (lambda g: {**g, ('extra',): g[('scale',)]}, KeyError, 'not registered: extra'),
    (lambda g: {**g, ('scale',): None}, KeyError, 'missing or None: scale'),
    (lambda g: None, KeyError, 'missing or None'),
    (
        lambda g: {**g, ('scale',): jnp.ones(3)},
        ValueError,
        r'scale: .* float32\[\], its gradient float64\[3\]',
    ),
    (lambda g: {**g, ('scale',): jnp.ones((), int)}, ValueError, 'scale: the weight is float32'),
    (lambda g: {**g, ('scale',): jnp.ones((), complex)}, ValueError, 'scale: the weight is float32'),
    (lambda g: {**g, ('layers', 0, 'weight'): jnp.ones((2, 3))}, ValueError, 'layers.0.weight.* has the structure'),
    (lambda g: {**g, ('scale',): {'a': g[('scale',)]}}, ValueError, 'scale has the structure'),
    (lambda g: {**g, ('scale',): g[('scale',)] * u.mV}, ValueError, r'gradient of scale has the unit mV'),
]


@every_optimizer
@pytest.mark.parametrize('jitted', [False, True])
def test_wrong_gradients_change_nothing(optimizer: type[bo.Optimizer], jitted: bool) -> None:
    states = nested_model()
    opt = optimizer(lr=0.1).register_trainable_weights(states)
    opt.update(nested_gradients())
    update = transform.jit(lambda g: opt.update(g)) if jitted else opt.update
    before = all_states(opt, states)
    for wrong, error, match in WRONG:
        with pytest.raises(error, match=match):
            update(wrong(nested_gradients()))
        assert_same(before, all_states(opt, states))
    update(nested_gradients())


def test_gradients_may_be_nested_or_flat_and_in_any_order() -> None:
    expected = None
    g = nested_gradients()
    nested = {'scale': g[('scale',)], 'layers': {0: {'weight': g['layers', 0, 'weight']}}}
    for form in (g, dict(reversed(g.items())), nested, {**nested, 'layers': [nested['layers'][0]]}):
        states = nested_model()
        bo.SGD(0.1).register_trainable_weights(states).update(form)
        expected = expected or all_values(states)
        assert_same(expected, all_values(states))


@pytest.mark.parametrize('sam', [False, True])
def test_weight_that_the_loss_ignores_has_gradient_zero(sam: bool) -> None:
    def build() -> tuple[Any, dict[str, brainstate.ParamState], Any]:
        w = {'a': brainstate.ParamState(jnp.arange(3.0)), 'b': brainstate.ParamState(jnp.ones(2))}
        base = bo.SGD(0.1, momentum=0.9, weight_decay=0.5)
        return (bo.SAM(base) if sam else base).register_trainable_weights(w), w, lambda: jnp.sum(w['a'].value ** 2)

    (ours, weights, loss), (theirs, same, same_loss) = build(), build()
    for _ in range(3):
        ours.minimize(loss)
        gradients = {'a': 2 * same['a'].value, 'b': jnp.zeros(2)}
        theirs.update(gradients, value_fn=lambda: same_loss() + 0 * same['b'].value.sum())
    for name, state in weights.items():
        np.testing.assert_allclose(state.value, same[name].value, rtol=1e-12)


def test_minimize_descends_in_the_complex_plane() -> None:
    """The gradient of |w|^2 is 2w as in torch; jax's derivative is its conjugate."""
    w = brainstate.ParamState(jnp.array([1 + 1j, 2 - 3j]))
    optimizer = bo.SGD(0.1).register_trainable_weights({'w': w})
    for _ in range(3):
        optimizer.minimize(lambda: jnp.sum(jnp.abs(w.value) ** 2))
    np.testing.assert_allclose(w.value, np.array([1 + 1j, 2 - 3j]) * 0.8**3, rtol=1e-6)


def test_partial_update_changes_only_the_given_weights() -> None:
    states = four_leaves()
    opt = bo.Adam(0.1, weight_decay=0.1).register_trainable_weights(states)
    update = brainstate.transform.jit(lambda g: opt.update(g, partial=True))
    for call in (lambda g: opt.update(g, partial=True), update):
        before, held = values_by_name(states), jax.tree.map(np.array, opt.opt_state.value)
        call({('a',): four_gradients(0)['a',], ('unknown',): jnp.ones(3)})
        assert all((w == before[name]).all() == (name[0] == 'b') for name, w in values_by_name(states).items())
        for slot in ('exp_avg', 'exp_avg_sq'):
            np.testing.assert_array_equal(opt.opt_state.value[slot]['b.tau'], held[slot]['b.tau'])
    counts = update_counts(opt)
    assert counts == {'a.bias': 2, 'a.weight': 2, 'b.tau': 0, 'b.weight': 0}
    with pytest.raises(KeyError, match=r'missing or None: b\.tau, b\.weight'):
        opt.update({('a',): four_gradients(0)['a',]})
    tree_rule = bo.LBFGS().register_trainable_weights(four_leaves())
    with pytest.raises(ValueError, match=r'Invalid partial=True\. LBFGS needs the gradients of all weights'):
        tree_rule.update({('a',): four_gradients(0)['a',]}, partial=True)
