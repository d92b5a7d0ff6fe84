"""``eval_weights`` puts the evaluation weights in place and takes them back bit for bit."""

from __future__ import annotations

import contextlib
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import registered

import braintools_optim as bo

SLOPES = np.random.default_rng(2).normal(size=(40, 3))
START = np.array([1.0, -2.0, 0.5])


def with_averages() -> list[Any]:
    return [
        bo.ScheduleFreeAdamW(0.1),
        bo.ASGD(0.1, t0=0.0),
        bo.Lookahead(bo.Adam(0.1), sync_period=2),
    ]


@pytest.mark.parametrize('optimizer', with_averages(), ids=lambda o: type(o).__name__)
def test_evaluation_weights_come_and_go(optimizer: Any) -> None:
    """The weights in training come back bit for bit; updates and checkpoints inside the block are refused."""
    states = registered(optimizer, w=START, half=jnp.ones(3, jnp.bfloat16))
    states['both'] = brainstate.ParamState({'a': jnp.ones(2), 'z': jnp.asarray(1 + 2j)})
    optimizer.add_param_group({'both': states['both']}, weight_decay=0.1)

    def gradients(t: int) -> dict[str, Any]:
        slope = jnp.asarray(SLOPES[t])
        return {'w': slope, 'half': slope.astype(jnp.bfloat16), 'both': {'a': slope[:2], 'z': jnp.asarray(1j)}}

    update = brainstate.transform.jit(optimizer.update)
    for t in range(5):
        update(gradients(t))
    before, saved = {key: s.value for key, s in states.items()}, optimizer.state_dict()
    loss = lambda: jnp.sum(states['w'].value ** 2)  # noqa: E731
    minimize = lambda: optimizer.minimize(loss)  # noqa: E731
    forbidden = {
        'An update': [lambda: update(gradients(5)), lambda: optimizer.update(gradients(5)), minimize],
        'Registering weights': [lambda: optimizer.add_param_group({'v': brainstate.ParamState(jnp.ones(2))})],
        'A checkpoint': [optimizer.state_dict, lambda: optimizer.load_state_dict(saved)],
        'eval_weights': [lambda: optimizer.eval_weights().__enter__()],
    }
    inside: dict[str, Any] = {}

    def evaluate() -> None:
        inside.update({key: s.value for key, s in states.items()})
        for what, actions in forbidden.items():
            for action in actions:
                with pytest.raises(ValueError, match=f'{what} inside eval_weights'):
                    action()
        jax.tree.map(np.testing.assert_array_equal, {key: s.value for key, s in states.items()}, inside)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), optimizer.eval_weights():
        evaluate()
    for key, state in states.items():
        assert (jnp.asarray(jax.tree.leaves(inside[key])[0]) != jax.tree.leaves(before[key])[0]).any()
        assert all(a is b for a, b in zip(*map(jax.tree.leaves, (state.value, before[key])), strict=True))
        kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(v[key])] for v in (inside, before)]
        assert kinds[0] == kinds[1]
    update(gradients(5))  # training continues unchanged
    after = {key: s.value for key, s in states.items()}
    optimizer.load_state_dict(saved)
    for key, state in states.items():
        state.value = before[key]
    update(gradients(5))
    jax.tree.map(np.testing.assert_array_equal, {key: s.value for key, s in states.items()}, after)


def test_evaluation_weights_are_the_documented_ones() -> None:
    asgd, lookahead = bo.ASGD(0.1, t0=0.0), bo.Lookahead(bo.SGD(1.0), sync_period=3, alpha=0.5)
    a, b = registered(asgd, w=START)['w'], registered(lookahead, w=START)['w']
    for slope in SLOPES[:4]:
        asgd.update({'w': jnp.asarray(slope)})
        lookahead.update({'w': jnp.asarray(slope)})
    with asgd.eval_weights(), lookahead.eval_weights():
        np.testing.assert_array_equal(a.value, asgd.opt_state.value['ax']['w'])
        np.testing.assert_allclose(b.value, START - 0.5 * SLOPES[:3].sum(0))


@pytest.mark.parametrize('optimizer', [bo.Adam(), bo.LBFGS()], ids=lambda o: type(o).__name__)
def test_optimizer_without_evaluation_weights_is_refused(optimizer: Any) -> None:
    with pytest.raises(ValueError, match='register_trainable_weights must be called before eval_weights'):
        optimizer.eval_weights().__enter__()
    w = registered(optimizer, w=START)['w']
    with (
        pytest.raises(TypeError, match=f'{type(optimizer).__name__} has no evaluation weights'),
        optimizer.eval_weights(),
    ):
        pass
    optimizer.update({'w': jnp.ones(3)})
    assert (w.value != START).all()


def test_compiled_functions_are_not_in_the_graph() -> None:
    optimizer = bo.ASGD()
    w = registered(optimizer, w=START)['w']
    states = set(brainstate.graph.states(optimizer))
    for power in (2, 4):
        optimizer.minimize(lambda power=power: jnp.sum(w.value**power))
    with optimizer.eval_weights():
        assert set(brainstate.graph.states(optimizer)) == states
    assert optimizer.state_dict()['step_count'] == 2


def test_evaluation_weights_of_master_copies_and_constraints() -> None:
    exact, half = (bo.ScheduleFreeSGD(0.01, 0.5, master_weights=master) for master in (False, True))
    a = registered(exact, w=jnp.asarray(START, np.float32))['w']
    b = registered(half, w=jnp.asarray(START, jnp.bfloat16))['w']
    for slope in SLOPES[:20]:
        rounded = jnp.asarray(slope, jnp.bfloat16)
        exact.update({'w': rounded.astype(np.float32)})
        half.update({'w': rounded})
    with exact.eval_weights(), half.eval_weights():
        assert b.value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(b.value, a.value.astype(jnp.bfloat16))
    bounded = bo.ASGD(1.0, t0=0.0, constraints={'w': bo.constraints.box(-0.5, 0.5)})
    w = registered(bounded, w=np.zeros(2))['w']
    bounded.update({'w': jnp.array([3.0, -0.25])})
    with bounded.eval_weights():
        np.testing.assert_allclose(w.value, [-0.5, 0.25])


G = {'w': jnp.array([1.0, -2.0]), 'b': jnp.array([4.0])}


def veto(context: Any) -> None:
    context.cancel = True


@pytest.mark.parametrize('refusing', ['w', 'b', 'optimizer state'])
def test_evaluation_weights_with_hooks(refusing: str) -> None:
    """Weights are replaced without a write; an optimizer state that refuses its write stays as it was."""
    states = {name: brainstate.ParamState(jnp.ones_like(g)) for name, g in G.items()}
    optimizer = bo.ScheduleFreeSGD(0.25).register_trainable_weights(states)
    for _ in range(2):
        optimizer.update(G)
    held = {name: state.value for name, state in states.items()}
    hooked = {**states, 'optimizer state': optimizer.opt_state}
    refused = (
        pytest.raises(brainstate.HookCancellationError) if refusing == 'optimizer state' else contextlib.nullcontext()
    )
    with hooked[refusing].temporary_hook('write_before', veto), refused, optimizer.eval_weights():
        assert all((state.value != held[name]).all() for name, state in states.items())
    assert all(state.value is held[name] for name, state in states.items())
    optimizer.update(G)
