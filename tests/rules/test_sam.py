"""Sharpness-aware minimization."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import COMPILATIONS
from helpers import registered

import braintools_optim as bo

START = np.array([1.0, -2.0, 0.5])


def valley(a: Any, b: Any) -> Any:
    return jnp.sum(jnp.sin(3 * a) * jnp.array([1.0, 2.0, -1.0])) + b * b * jnp.sum(a**2)


def sam_steps(rho: float, adaptive: bool, clip: float, sign: float = 1.0) -> Any:
    """Return the weights after each update of clipped heavy-ball descent with a halving rate, by the formula."""
    w, buffer, rate, path = [START, np.array(0.5)], [0.0, 0.0], 0.1, []
    slope = jax.grad(lambda w: sign * valley(*w))
    for _ in range(6):
        g = [np.array(x) for x in slope([jnp.asarray(x) for x in w])]
        size = [np.abs(x) if adaptive else np.ones_like(x) for x in w]
        norm = np.sqrt(sum(np.sum((s * x) ** 2) for s, x in zip(size, g, strict=True)))
        there = [x + rho * s**2 * y / norm for x, s, y in zip(w, size, g, strict=True)]
        g = [np.array(x) for x in slope([jnp.asarray(x) for x in there])]
        norm = np.sqrt(sum(np.sum(x**2) for x in g))
        g = [x * min(1.0, clip / (norm + 1e-6)) for x in g]
        buffer = [0.9 * b + x + 0.01 * y for b, x, y in zip(buffer, g, w, strict=True)]
        w = [x - rate * b for x, b in zip(w, buffer, strict=True)]
        rate *= 0.5
        path.append(np.append(*w))
    return np.stack(path)


@pytest.mark.parametrize('way', ['minimize', 'update', 'tree', 'jit'])
@pytest.mark.parametrize(('rho', 'adaptive', 'sign'), [(0.05, False, 1.0), (2.0, True, -1.0)])
def test_sam_equals_the_paper(rho: float, adaptive: bool, sign: float, way: str) -> None:
    base = bo.SGD(bo.StepLR(0.1, 1, 0.5), 0.9, weight_decay=0.01, grad_clip_norm=2.0, maximize=sign < 0)
    optimizer = bo.SAM(base, rho=rho, adaptive=adaptive)
    states = {'a': brainstate.ParamState(jnp.asarray(START)), 'b': brainstate.ParamState({'x': jnp.asarray(0.5)})}
    assert optimizer.register_trainable_weights(states) is optimizer
    loss = lambda: valley(states['a'].value, states['b'].value['x'])  # noqa: E731
    of_tree = lambda tree: valley(tree['a'], tree['b']['x'])  # noqa: E731
    in_jit = brainstate.transform.jit(lambda: optimizer.minimize(loss))
    for t, exact in enumerate(sam_steps(rho, adaptive, 2.0, sign)):
        before, compiled = loss(), len(COMPILATIONS)
        if way in ('minimize', 'jit'):
            here = optimizer.minimize(loss) if way == 'minimize' else in_jit()
            assert t == 0 or len(COMPILATIONS) == compiled
            np.testing.assert_allclose(here, before)
        else:
            gradients = brainstate.transform.grad(loss, states)()
            optimizer.update(gradients, value_fn=of_tree if way == 'tree' else loss)
        optimizer.lr.step()
        np.testing.assert_allclose(np.append(states['a'].value, states['b'].value['x']), exact, rtol=1e-12)
    assert int(optimizer.step_count.value) == 6


def test_sam_equals_optax() -> None:
    optimizer = bo.SAM(bo.SGD(0.1), rho=0.3)
    w = registered(optimizer, w=START)['w']
    tx = optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.3)), opaque_mode=True)
    params, slope = jnp.asarray(START), jax.grad(lambda x: valley(x, 0.5))
    state, loss = tx.init(params), lambda: valley(w.value, 0.5)
    for _ in range(5):
        optimizer.minimize(loss)
        changes, state = tx.update(slope(params), state, params, grad_fn=lambda x, _: slope(x))
        params = optax.apply_updates(params, changes)
        np.testing.assert_allclose(w.value, params, rtol=1e-12)


def test_sam_exposes_the_base_optimizer() -> None:
    """Options act on the next update, checkpoints resume exactly, and groups are those of the base optimizer."""

    def build(start: Any = START, b: Any = 0.5, **options: Any) -> Any:
        optimizer = bo.SAM(bo.ScheduleFreeAdamW(0.1), **options)
        states = {'a': brainstate.ParamState(jnp.asarray(start))}
        optimizer.register_trainable_weights(states)
        states['b'] = brainstate.ParamState(jnp.asarray(b, jnp.bfloat16))
        optimizer.add_param_group({'b': states['b']}, lr=0.3)
        loss = lambda: valley(states['a'].value, states['b'].value.astype(float))  # noqa: E731
        return optimizer, states, loss

    (optimizer, states, loss), reference = build(rho=0.1), build(rho=0.4, adaptive=True)
    assert float(optimizer.lr) == optimizer.current_lr == 0.1
    assert [float(group['lr']) for group in optimizer.param_groups] == [0.1, 0.3]
    optimizer.minimize(loss)
    optimizer.rho, optimizer.adaptive, optimizer.lr, optimizer.eps = 0.4, True, 0.05, 0.1
    assert (optimizer.rho, optimizer.adaptive, optimizer.base_optimizer.eps) == (0.4, True, 0.1)
    reference[0].load_state_dict(optimizer.state_dict())
    for key, state in reference[1].items():
        state.value = states[key].value
    for _ in range(2):
        optimizer.minimize(loss)
        reference[0].minimize(reference[2])
    jax.tree.map(np.testing.assert_array_equal, *({k: s.value for k, s in x.items()} for x in (states, reference[1])))
    assert states['b'].value.dtype == jnp.bfloat16
    with optimizer.eval_weights():
        with pytest.raises(ValueError, match='An update inside eval_weights'):
            optimizer.minimize(loss)
        with pytest.raises(ValueError, match='An update inside eval_weights'):
            optimizer.update({}, value_fn=loss)
    with pytest.raises(ValueError, match='adaptive: True there, False here'):
        build()[0].load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match='not one of SAM'):
        optimizer.load_state_dict(optimizer.base_optimizer.state_dict())
    assert 'SAM(ScheduleFreeAdamW(lr=' in repr(optimizer)
    assert len(brainstate.graph.states(optimizer)) == len(brainstate.graph.states(optimizer.base_optimizer)) + 1


def test_wrong_calls_of_sam_change_nothing() -> None:
    optimizer = bo.SAM(bo.Adam(), rho=0.1)
    loss = lambda: 0.0  # noqa: E731
    for update in (lambda: optimizer.update({}, value_fn=loss), lambda: optimizer.minimize(loss)):
        with pytest.raises(ValueError, match='register_trainable_weights must be called before'):
            update()
    w = registered(optimizer, w=START)['w']
    before = [w.value, *jax.tree.leaves(optimizer.state_dict())]
    with pytest.raises(ValueError, match=r'SAM needs the loss: update\(grads, value_fn=loss\)'):
        optimizer.update({'w': w.value})
    with pytest.raises(ValueError, match='shapes of their weights'):
        optimizer.update({'w': jnp.ones((2, 3))}, value_fn=lambda: jnp.sum(w.value**2))
    with pytest.raises(KeyError, match='missing or None: w'):
        optimizer.update({}, value_fn=lambda: jnp.sum(w.value**2))
    for wrong in (-0.1, 'x'):
        with pytest.raises((ValueError, TypeError), match=f'Invalid rho={wrong!r}'):
            optimizer.rho = wrong
        with pytest.raises((ValueError, TypeError), match=f'Invalid rho={wrong!r}'):
            bo.SAM(bo.Adam(), rho=wrong)
    with pytest.raises(TypeError, match='Invalid adaptive=1'):
        optimizer.adaptive = 1
    with pytest.raises(TypeError, match='Invalid base_optimizer='):
        bo.SAM(optax.sgd(0.1))
    after = [w.value, *jax.tree.leaves(optimizer.state_dict())]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    optimizer.minimize(lambda: 0.0 * jnp.sum(w.value))  # a zero gradient gives no perturbation
    np.testing.assert_array_equal(w.value, START)


@pytest.mark.parametrize('dynamic', [False, True])
def test_sam_under_a_loss_scale_with_frozen_weights(dynamic: bool) -> None:
    """The scale changes nothing, frozen weights are not perturbed, and nonfinite gradients are skipped."""
    scale = bo.DynamicLossScale(2.0**10) if dynamic else 2.0**10
    path = []
    for loss_scale in (None, 1.0, scale):
        optimizer = bo.SAM(bo.SGD(0.1, loss_scale=loss_scale), rho=0.5)
        states = registered(optimizer, w=START)
        other = brainstate.ParamState(jnp.ones(2))
        if loss_scale is not None:  # otherwise it is not registered
            states['other'] = other
            optimizer.register_trainable_weights(states)
            optimizer.freeze('other')
        factor = brainstate.ShortTermState(jnp.asarray(1.0))

        def loss(s: Any = states, o: Any = other, f: Any = factor) -> Any:
            return f.value * valley(s['w'].value, 0.5) + 9 * jnp.sum(o.value**2)

        for _ in range(3):
            optimizer.minimize(loss)
        times = 2.0**10 if loss_scale is scale else 1.0
        gradients = brainstate.transform.grad(lambda loss=loss, times=times: times * loss(), states)()
        optimizer.update(gradients, value_fn=loss)
        path.append(np.array(states['w'].value))
        assert (other.value == 1.0).all()
    for again in path[1:]:
        np.testing.assert_allclose(again, path[0], rtol=1e-12)
    if dynamic:
        factor.value = jnp.asarray(jnp.nan)
        optimizer.minimize(loss)
        np.testing.assert_array_equal(states['w'].value, path[-1])
        assert (scale.current, int(optimizer.skipped_count)) == (2.0**9, 1)
