"""``minimize`` follows whatever the loss reads, and compiles only when what is computed has changed."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations
from helpers import registered
from internals import replays

import braintools_optim as bo

BATCH: Any = None
ONES = np.ones(3)


def square(target: Any) -> Any:
    """Return the loss at weights of one, and the weights after a step of SGD with a rate of 0.1, by hand."""
    return np.sum((ONES - target) ** 2), ONES - 0.2 * (ONES - target)


class Model:
    """A loss that reads ``batch`` from several places."""

    batch: Any = None

    def __init__(self, w: brainstate.State):
        self.w, self.stored, self.weights_of = w, {'batch': [None]}, {'square': True}
        self.scale: Any = 1.0

    def loss(self) -> Any:
        return jnp.sum((self.w.value - self.batch) ** 2)

    def of_container(self) -> Any:
        return jnp.sum((self.w.value - self.stored['batch'][0]) ** 2)

    def of_global(self) -> Any:
        return jnp.sum((self.w.value - BATCH) ** 2)

    def in_place(self) -> Any:
        return jnp.sum((self.w.value - self.buffer) ** 2)

    buffer = np.zeros(3)

    def put(self, batch: Any) -> None:
        """Put a batch into all places."""
        global BATCH
        self.batch = self.stored['batch'][0] = BATCH = batch
        self.buffer[...] = batch


def build(lr: Any = 0.1, rule: Any = bo.SGD, **options: Any) -> tuple[bo.Optimizer, brainstate.ParamState]:
    optimizer = rule(lr=lr, **options)
    return optimizer, registered(optimizer, w=ONES)['w']


@pytest.mark.parametrize('place', ['loss', 'of_container', 'of_global', 'in_place', 'closure', 'lambda', 'default'])
@pytest.mark.parametrize('kind', ['number', 'array', 'numpy'])
def test_loss_follows_what_it_reads(place: str, kind: str) -> None:
    optimizer, w = build()
    model, target = Model(w), None

    def closure() -> Any:
        return jnp.sum((w.value - target) ** 2)

    def default(at: Any = None) -> Any:
        return jnp.sum((w.value - at) ** 2)

    for i, number in enumerate((0.0, 10.0, 20.0, -0.0, 30.0)):
        w.value = jnp.asarray(ONES)
        target = {'number': number, 'array': jnp.full(3, number), 'numpy': np.full(3, number)}[kind]
        model.put(target)
        default.__defaults__ = (target,)
        losses: dict[str, Callable[[], Any]] = {
            'closure': closure,
            'default': default,
            'lambda': lambda target=target: jnp.sum((w.value - target) ** 2),
        }
        if i > 1:
            with compilations(0):
                loss = optimizer.minimize(losses.get(place) or getattr(model, place))
        else:
            loss = optimizer.minimize(losses.get(place) or getattr(model, place))
        expected = square(number)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-12)
        np.testing.assert_allclose(w.value, expected[1], rtol=1e-12)


def test_loss_follows_branches_flags_and_contexts() -> None:
    optimizer, w = build()
    mode = types.SimpleNamespace(power=2)

    def loss() -> Any:
        factor = 3.0 if brainstate.environ.get('fit', default=False) else 1.0
        return factor * jnp.sum((w.value + 1) ** mode.power)

    for power, fit, expected in [(2, False, 12.0), (3, False, 24.0), (2, False, 12.0), (3, True, 72.0)]:
        w.value, mode.power = jnp.asarray(ONES), power
        with brainstate.environ.context(fit=fit):
            assert float(optimizer.minimize(loss)) == expected


def test_number_inside_a_loop_is_followed() -> None:
    optimizer, w = build()
    for decay in (0.5, 0.25, 0.5):
        w.value = jnp.asarray(ONES)
        total = optimizer.minimize(
            lambda decay=decay: brainstate.transform.for_loop(lambda i: decay * w.value.sum(), jnp.arange(4)).sum()
        )
        assert float(total) == 12 * decay
        np.testing.assert_allclose(w.value, 1 - 0.4 * decay)


def custom_vjp(alpha: Callable[[], Any]) -> Callable[[Any], Any]:
    @jax.custom_vjp
    def spike(x: Any) -> Any:
        return (x > 0).astype(x.dtype)

    spike.defvjp(lambda x: (spike(x), x), lambda x, g: (g * alpha(),))
    return spike


def custom_jvp(alpha: Callable[[], Any]) -> Callable[[Any], Any]:
    @jax.custom_jvp
    def spike(x: Any) -> Any:
        return (x > 0).astype(x.dtype)

    spike.defjvp(lambda xs, ts: (spike(*xs), ts[0] * alpha()))
    return spike


def custom_gradient(alpha: Callable[[], Any]) -> Callable[[Any], Any]:
    return jax.custom_gradient(lambda x: ((x > 0).astype(x.dtype), lambda g: (g * alpha(),)))


@pytest.mark.parametrize('surrogate', [custom_vjp, custom_jvp, custom_gradient])
@pytest.mark.parametrize('in_loop', [False, True], ids=['alone', 'in a loop'])
@pytest.mark.parametrize('kind', [float, jnp.asarray], ids=['number', 'array'])
def test_derivative_rule_is_followed(surrogate: Any, in_loop: bool, kind: Any) -> None:
    optimizer, w = build(1.0)
    alpha = kind(1.0)
    spike = surrogate(lambda: alpha)

    def loss() -> Any:
        if in_loop:
            return brainstate.transform.for_loop(lambda i: spike(w.value).sum(), jnp.arange(1)).sum()
        return spike(w.value).sum()

    for value in (1.0, 2.0, 1.0):
        alpha, w.value = kind(value), jnp.asarray(ONES)
        optimizer.minimize(loss)
        np.testing.assert_array_equal(w.value, 1 - value)
    with compilations(0):
        optimizer.minimize(loss)


def test_functions_with_rules_of_jax_compile_once() -> None:
    optimizer, w = build()

    def loss() -> Any:
        x = jax.checkpoint(jnp.sin, policy=jax.checkpoint_policies.save_only_these_names('x'))(w.value)
        return jax.nn.relu(x).sum() + jax.nn.softmax(x)[0] + jax.nn.logsumexp(x) + jnp.logaddexp(x, 1.0).sum()

    optimizer.minimize(loss)
    with compilations(0):
        optimizer.minimize(lambda: loss())


def test_random_numbers_whose_arguments_are_checked_compile_once() -> None:
    """brainstate checks the probability in a callback, whose arguments are in a dict."""
    optimizer, w = build()
    loss = lambda: (w.value * brainstate.random.bernoulli(jnp.full(3, 0.5))).sum()  # noqa: E731
    for _ in range(2):  # the first trace wraps brainstate's random key
        optimizer.minimize(loss)
    with compilations(0):
        optimizer.minimize(loss)


def test_callback_of_each_call_runs() -> None:
    optimizer, w = build()
    for _ in range(2):
        seen: list[float] = []

        def loss(seen: list[float] = seen) -> Any:
            jax.debug.callback(lambda x: seen.append(float(x)), w.value[0])
            return w.value.sum()

        optimizer.minimize(loss)
        jax.effects_barrier()
        assert len(seen) == 1


class Cell(brainstate.nn.Module):
    """A leaky integrator whose hidden State ``init_state`` makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(jnp.asarray(ONES))

    def init_state(self) -> None:
        self.h = brainstate.HiddenState(jnp.zeros(3))

    def update(self, x: Any) -> Any:
        self.h.value = 0.5 * self.h.value + x * self.w.value
        return self.h.value


@pytest.mark.parametrize('inside', [False, True])
def test_hidden_states_made_anew_compile_nothing(inside: bool) -> None:
    cell = Cell()
    optimizer = bo.SGD(0.1).register_trainable_weights(cell.states(brainstate.ParamState))

    def loss(xs: Any) -> Any:
        if inside:
            cell.init_state()
        return brainstate.transform.for_loop(cell.update, xs).sum()

    weights, xs = ONES, jnp.arange(3.0)
    influence = sum(float(x) * 0.5**k for t in range(3) for k, x in enumerate(xs[t::-1]))
    for i in range(4):
        cell.init_state()
        if i == 1:
            before = len(replays(optimizer))
        loss_now = optimizer.minimize(loss, xs)
        np.testing.assert_allclose(loss_now, influence * weights.sum(), rtol=1e-12)
        weights = weights - 0.1 * influence
        np.testing.assert_allclose(cell.w.value, weights, rtol=1e-12)
        if not inside:
            last = sum(0.5**k * x for k, x in enumerate((2.0, 1.0, 0.0)))
            np.testing.assert_allclose(cell.h.value, last * (weights + 0.1 * influence), rtol=1e-12)
    assert len(replays(optimizer)) == before == 1


def test_hidden_state_of_another_shape_and_another_object() -> None:
    optimizer, w = build()
    hidden = brainstate.HiddenState(jnp.zeros(3))

    def loss() -> Any:
        hidden.value = hidden.value + w.value.sum()
        return hidden.value.sum()

    for size in (3, 5, 5, 3):
        hidden = brainstate.HiddenState(jnp.zeros(size))
        before = w.value.sum()
        assert float(optimizer.minimize(loss)) == pytest.approx(float(size * before))
        np.testing.assert_allclose(hidden.value, np.full(size, before))
        optimizer.maximize = not optimizer.maximize  # compiles again, with the present hidden State


def test_random_numbers_differ_in_each_call_as_in_jit() -> None:
    results = []
    for jitted in (False, True):
        optimizer, w = build()
        brainstate.random.seed(0)
        step = lambda: optimizer.minimize(lambda: (w.value * brainstate.random.rand(3)).sum())  # noqa: B023, E731
        step = brainstate.transform.jit(step) if jitted else step
        results.append([float(step()) for _ in range(3)])
    assert results[0] == results[1]
    assert len(set(results[0])) == 3


@pytest.mark.parametrize(
    'build_optimizer',
    [
        lambda: bo.SAM(bo.SGD(0.1)),
        lambda: bo.LBFGS(linesearch='zoom'),
        lambda: bo.Sophia(gamma=1.0),
        lambda: bo.PolyakSGD(),
        lambda: bo.SGD(0.1, loss_scale=bo.DynamicLossScale(8.0)),
        lambda: bo.OptaxOptimizer(optax.lbfgs()),
    ],
    ids=['SAM', 'LBFGS', 'Sophia', 'PolyakSGD', 'loss scale', 'OptaxOptimizer'],
)
@pytest.mark.parametrize('way', ['minimize', 'value_fn'])
def test_loss_that_the_rule_evaluates_is_followed(build_optimizer: Any, way: str) -> None:
    """The trajectory equals that of a loss which takes the target as an argument."""
    ends = []
    for captured in (True, False):
        optimizer = build_optimizer()
        w, target = registered(optimizer, w=ONES)['w'], jnp.zeros(3)

        def of(target: Any) -> Any:
            return jnp.sum((w.value - target) ** 2 * jnp.arange(1.0, 4.0))  # noqa: B023

        for number in (0.0, 3.0, -2.0):
            target = jnp.full(3, number)
            if way == 'minimize':
                optimizer.minimize(*([lambda: of(target)] if captured else [of, target]))  # noqa: B023
                continue
            loss = (lambda: of(target)) if captured else (lambda target=target: of(target))  # noqa: B023
            grads = brainstate.transform.grad(loss, {'w': w})()
            with jax.disable_jit(not captured):
                needs_value = {'value': loss()} if not isinstance(optimizer, (bo.SAM, bo.Sophia)) else {}
                optimizer.update(grads, value_fn=loss, **needs_value)
        ends.append(np.array(w.value))
    np.testing.assert_allclose(*ends, rtol=1e-12)


def test_update_with_a_new_loss_each_time_compiles_once() -> None:
    optimizer, _ = build(rule=bo.Sophia, gamma=1.0)
    for t in range(3):
        slope = jnp.full(3, float(t))
        update = lambda: optimizer.update({'w': slope}, value_fn=lambda p: jnp.sum((p['w'] - slope) ** 2))  # noqa: B023, E731
        if t:
            with compilations(0):
                update()
        else:
            update()


def test_error_in_the_loss_leaves_every_state() -> None:
    optimizer, w = build()
    count = brainstate.ShortTermState(jnp.zeros(()))
    fails = False

    def loss() -> Any:
        count.value = count.value + w.value[0]
        if fails:
            raise OSError('no such file')
        return w.value.sum()

    optimizer.minimize(loss)
    before, fails = (np.array(w.value), float(count.value)), True
    with pytest.raises(OSError, match='no such file'):
        optimizer.minimize(loss)
    np.testing.assert_array_equal(w.value, before[0])
    assert float(count.value) == before[1]
    fails = False
    optimizer.minimize(loss)


def test_losses_beyond_the_most_that_are_kept_are_forgotten() -> None:
    optimizer, w = build()
    kept = replays(optimizer)
    with jax.disable_jit():
        optimizer.minimize(lambda: w.value.sum())
    assert len(kept) == 0
    for size in range(1, 33):
        optimizer.minimize(lambda x: w.value.sum() * x.sum(), jnp.ones(size))
    with pytest.warns(UserWarning, match='The loss was compiled 32 times'):
        optimizer.minimize(lambda x: w.value.sum() * x.sum(), jnp.ones(33))
    assert len(kept) == 32


def test_loss_in_a_jitted_step_is_the_users_function() -> None:
    optimizer, w = build()
    calls = []

    @bo.jit
    def step() -> Any:
        return optimizer.minimize(lambda: (calls.append(1), w.value.sum())[1])

    step()
    before = len(calls)
    step()
    assert len(calls) == before
