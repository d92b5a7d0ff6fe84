"""Buffers of States are reused in place, and never while something else needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate import transform
from compiling import compilations
from internals import block_for, buffers, compiler_options
from models import nested_gradients, nested_model
from state_functions import N, X, add, states

import braintools_optim as bo


def share(s: Any, x: Any) -> Any:
    s['a'].value = s['b'].value = s['a'].value + x


def test_only_written_states_are_donated() -> None:
    own = states()
    jitted = bo.jit(lambda x: add(own, x))
    before = {name: own[name].value for name in 'abc'}
    analysis = jitted.lower(X).compile().memory_analysis()
    assert analysis.alias_size_in_bytes == X.nbytes
    assert not before['a'].is_deleted()  # nothing has run
    jitted(X)
    assert {name: value.is_deleted() for name, value in before.items()} == {'a': True, 'b': False, 'c': False}
    assert not X.is_deleted()
    with pytest.raises(RuntimeError, match='deleted'):
        np.asarray(before['a'])
    with pytest.raises(RuntimeError, match='deleted'):
        jitted(before['a'])
    np.testing.assert_array_equal(own['a'].value, X + 1 + X * X * 3)


@pytest.mark.parametrize('how', [lambda f: f, jax.jit])
def test_constant_of_the_function_is_not_donated(how: Any) -> None:
    a = brainstate.State(X + 1)
    start = a.value
    distance = how(lambda x: x - start)

    def step() -> Any:
        a.value = a.value + 1
        return distance(a.value)

    jitted = bo.jit(step)
    for i in range(3):
        np.testing.assert_array_equal(jitted(), np.full(N, i + 1.0))
    np.testing.assert_array_equal(start, X + 1)


def problem() -> tuple[dict[str, brainstate.ParamState], bo.Optimizer]:
    weights = {'w': brainstate.ParamState(jnp.ones((3, 2))), 'v': brainstate.ParamState(jnp.ones(3))}
    return weights, bo.Adam(0.1, grad_clip_norm=1.0).register_trainable_weights(weights)


def test_train_step_with_donation_equals_plain_updates() -> None:
    weights, optimizer = problem()
    x = jnp.arange(2.0)
    held = []

    def loss() -> Any:
        return jnp.sum((weights['w'].value @ x + weights['v'].value) ** 2)

    @bo.jit
    def train_step() -> Any:
        gradients, value = transform.grad(loss, weights, return_value=True)()
        optimizer.update(gradients)
        return value

    twins, twin = problem()
    for i in range(4):
        held.append(train_step())
        gradients = jax.grad(lambda w: jnp.sum((w['w'] @ x + w['v']) ** 2))({k: s.value for k, s in twins.items()})
        twin.update(gradients)
        if i == 1:  # flags are part of a State's structure
            optimizer.maximize = twin.maximize = True
            optimizer.lr = twin.lr = 0.3
    for key, state in weights.items():
        np.testing.assert_allclose(state.value, twins[key].value, rtol=1e-12)
    assert held[0] > held[1] > held[2]
    with compilations(0):
        optimizer.lr = 0.2
        train_step()
    weights_and_slots = 3 * sum(state.value.nbytes for state in weights.values())
    assert train_step.lower().compile().memory_analysis().alias_size_in_bytes >= weights_and_slots


@pytest.mark.parametrize('side', [64, 2100])
def test_allocation_blocks_change_no_bit(side: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Each block holds the largest array, or XLA would warn; small arrays share one block."""

    def train_step(w: brainstate.ParamState) -> Callable[[Any], None]:
        def step(x: Any) -> None:
            loss = lambda: jnp.sum(jnp.tanh(x @ jnp.tanh(w.value)) ** 2)  # noqa: E731
            w.value = w.value - 0.1 * transform.grad(loss, w)()

        return step

    x = jnp.linspace(-1.0, 1.0, side, dtype=jnp.float32)
    usual, ours = (brainstate.ParamState(jnp.outer(x, x)) for _ in range(2))
    transform.jit(train_step(usual))(x)
    bo.jit(train_step(ours))(x)
    np.testing.assert_array_equal(ours.value, usual.value)
    assert 'buffer size' not in capfd.readouterr().err
    sizes = [4 * side * side] * 3
    assert block_for(sizes) == (None if side == 64 else 4 * side * side)
    assert (compiler_options() == compiler_options(block=block_for(sizes))) == (side == 64)


@pytest.mark.parametrize('donate', [False, True])
def test_minimize_donates_the_same_buffers_as_update(donate: bool) -> None:
    weights, optimizer = problem()
    hidden = brainstate.HiddenState(jnp.zeros(3))
    optimizer.donate_weights = donate

    def loss() -> Any:
        hidden.value = hidden.value + weights['v'].value
        return jnp.sum(hidden.value**2) + jnp.sum(weights['w'].value ** 2)

    before = weights['w'].value, hidden.value, optimizer.opt_state.value['exp_avg']['w']
    optimizer.minimize(loss)
    assert [array.is_deleted() for array in before] == [donate, False, True]


@pytest.mark.parametrize('share', [lambda x: x, lambda x: jax.device_put(x, jax.devices()[0])], ids=['same', 'another'])
@pytest.mark.parametrize(
    'what', ['argument', 'entry of an argument', 'keyword', 'state', 'read only', 'dict', 'same dict']
)
def test_buffer_shared_after_many_calls_is_not_donated(
    what: str, share: Callable[[Any], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """A shared buffer is found even after calls in which the check of buffers was skipped."""

    def run(jit: Callable[..., Any]) -> Any:
        own = states()
        own['d'] = brainstate.State({'x': X})

        def function(x: Any, y: Any = X) -> Any:
            x = x[0] * y if isinstance(x, tuple) else x * y
            own['a'].value, own['b'].value = own['a'].value + x, own['b'].value * x
            return own['c'].value * 2 + own['d'].value['x']

        jitted, results = jit(function), []
        for i in range(8):
            shared = share(own['a'].value) if i in (4, 5) else X + i
            args, kwargs = {
                'argument': ((shared,), {}),
                'entry of an argument': (((shared,),), {}),
                'keyword': ((X,), {'y': shared}),
            }.get(what, ((X,), {}))
            if i in (4, 5) and what in ('state', 'read only', 'dict'):
                name = {'state': 'b', 'read only': 'c', 'dict': 'd'}[what]
                own[name].value = {'x': shared} if name == 'd' else shared
            if i in (4, 5) and what == 'same dict':
                own['d'].value['x'] = shared
            results.append((jitted(*args, **kwargs), args, kwargs))
        return results, {name: state.value for name, state in own.items()}

    for ours, theirs in zip(*(jax.tree.leaves(run(jit)) for jit in (bo.jit, transform.jit)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert share(X) is not X or not capfd.readouterr().err


def test_known_buffers_are_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is skipped for every form of the arguments that has been seen."""
    own, looks = states(), list[Any]()
    monkeypatch.setattr(buffers, 'buffer_of', lambda leaf, look=buffers.buffer_of: looks.append(leaf) or look(leaf))

    @bo.jit
    def add_to_one(x: Any) -> None:
        one = own['a' if x.ndim else 'b']
        one.value = one.value + x

    for x in [X] * 3 + [X[1]] * 3:
        add_to_one(x)
    looked = len(looks)
    add_to_one(x)
    assert 0 < looked == len(looks)


def test_optimizer_state_is_donated_and_weights_on_request() -> None:
    states = nested_model()
    opt = bo.Adam().register_trainable_weights(states)
    held, state = states[('scale',)].value, opt.opt_state.value
    opt.update(nested_gradients())
    assert float(held) == 2.0
    assert state['exp_avg']['scale'].is_deleted()
    opt.donate_weights = True
    held = states[('scale',)].value
    opt.update(nested_gradients())
    assert held.is_deleted()
    assert np.isfinite(states[('scale',)].value)


@pytest.mark.parametrize('share', [lambda x: x, lambda x: jax.device_put(x, jax.devices()[0])], ids=['same', 'another'])
def test_donated_weights_may_share_a_buffer(share: Callable[[Any], Any]) -> None:
    """Donated weights may share a buffer with each other or with a gradient, which stays valid."""
    zero = jnp.zeros(2)
    states = {'a': brainstate.ParamState(zero), 'b': brainstate.ParamState(share(zero))}
    opt = bo.SGD(0.5).register_trainable_weights(states)
    opt.donate_weights = True
    opt.update({'a': jnp.ones(2), 'b': -jnp.ones(2)})
    np.testing.assert_array_equal(states['a'].value, [-0.5, -0.5])
    g = {'a': share(states['b'].value), 'b': share(states['b'].value)}
    opt.update(g)
    np.testing.assert_array_equal(states['a'].value, [-0.75, -0.75])
    np.testing.assert_array_equal(states['b'].value, [0.25, 0.25])
    np.testing.assert_array_equal(g['a'], [0.5, 0.5])
