"""Transformations of the gradients before clipping, and spikes of their norm."""

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
from helpers import registered

import braintools_optim as bo

START = {'a': np.array([1.0, -2.0, 3.0]), 'b': np.array([[0.5, 4.0]])}
TRANSFORMS: dict[str, Any] = {
    'trace': lambda: optax.trace(0.9),
    'normalize': lambda: optax.normalize_by_update_norm(),
    'centralize': lambda: optax.centralize(),
    'noise': lambda: optax.add_noise(0.1, 0.55, 7),
    'chain': lambda: optax.chain(optax.clip(0.5), optax.ema(0.5), optax.add_decayed_weights(0.1)),
}


def slopes(t: int) -> dict[str, Any]:
    rng = np.random.default_rng(t)
    return {key: jnp.asarray(rng.normal(size=x.shape)) for key, x in START.items()}


@pytest.mark.parametrize('name', TRANSFORMS)
@pytest.mark.parametrize('how', ['eager', 'jit', 'resumed', 'loss scale'])
def test_transform_equals_optax_before_clipping(name: str, how: str) -> None:
    def build() -> tuple[Any, Any]:
        scale = {'loss_scale': 8.0} if how == 'loss scale' else {}
        optimizer = bo.Adam(0.1, gradient_transform=TRANSFORMS[name](), grad_clip_norm=0.5, **scale)
        return optimizer, (bo.jit(optimizer.update) if how == 'jit' else optimizer.update)

    optimizer, update = build()
    states = registered(optimizer, **START)
    tx, plain = TRANSFORMS[name](), bo.Adam(0.1, grad_clip_norm=0.5)
    same = registered(plain, **START)
    state = tx.init({key: jnp.asarray(x) for key, x in START.items()})
    for t in range(5):
        if t == 2 and how == 'resumed':
            saved = optimizer.state_dict()
            optimizer, update = build()
            states = registered(optimizer, **{key: np.array(s.value) for key, s in states.items()})
            optimizer.load_state_dict(saved)
        grads = slopes(t)
        update(jax.tree.map(lambda g: 8 * g, grads) if how == 'loss scale' else grads)
        changed, state = tx.update(grads, state, {key: s.value for key, s in same.items()})
        plain.update(changed)
        for key, w in states.items():
            np.testing.assert_allclose(w.value, same[key].value, rtol=1e-12, err_msg=key)


def test_function_and_groups() -> None:
    def halve(gradients: dict[str, jax.Array]) -> dict[str, jax.Array]:
        assert gradients.keys() == {'a', 'b', 'c'}
        return {key: g / 2 for key, g in gradients.items()}

    tenfold = bo.SGD(1.0, gradient_transform=lambda g: {'c': g['c'] * 10})
    groups: Any = {'b': {'gradient_transform': optax.trace(1.0)}, 'c': tenfold}
    optimizer = bo.SGD(1.0, gradient_transform=halve, groups=groups)
    states = registered(optimizer, a=np.zeros(1), b=np.zeros(1), c=np.zeros(1))
    for _ in range(2):
        optimizer.update(dict.fromkeys('abc', jnp.ones(1)))
    assert {key: float(s.value[0]) for key, s in states.items()} == {'a': -1.0, 'b': -1.5, 'c': -10.0}
    late = brainstate.ParamState(jnp.zeros(1))
    free = bo.SGD(1.0, gradient_transform=optax.trace(1.0), groups={'b': {'gradient_transform': optax.trace(1.0)}})
    states = registered(free, a=np.zeros(1), b=np.zeros(1))
    free.update(dict.fromkeys('ab', jnp.ones(1)))
    free.add_param_group({'late': late})  # the transformation of all starts again, that of the group goes on
    free.update({**dict.fromkeys('ab', jnp.ones(1)), 'late': jnp.ones(1)})
    states['late'] = late
    assert {key: float(s.value[0]) for key, s in states.items()} == {'a': -2.0, 'b': -3.0, 'late': -1.0}


def test_units_frozen_weights_partial_updates_and_low_precision() -> None:
    optimizer = bo.SGD(1.0, gradient_transform=optax.trace(1.0))
    w = {'v': brainstate.ParamState(jnp.zeros(2) * u.mV), 'h': brainstate.ParamState(jnp.zeros(2, jnp.bfloat16)),
         'z': brainstate.ParamState(jnp.zeros(1, complex))}  # fmt: skip
    optimizer.register_trainable_weights(w)
    grads = {'v': jnp.ones(2) * u.mV, 'h': jnp.ones(2, jnp.bfloat16), 'z': jnp.ones(1) * (1 + 1j)}
    optimizer.update(grads)
    optimizer.update({'v': grads['v']}, partial=True)
    optimizer.freeze('z')
    optimizer.update({key: grads[key] for key in 'vh'})
    assert u.math.allclose(w['v'].value, -6.0 * u.mV)  # 1 + 2 + 3
    np.testing.assert_array_equal(w['h'].value, -3.0)  # 1 + 2: the trace keeps its value without a gradient
    np.testing.assert_array_equal(w['z'].value, -1 + 1j)
    state = optimizer.opt_state.value['running']['transforms']['all'].trace
    assert {key: x.dtype for key, x in state.items()} == {'v': jnp.float64, 'h': jnp.float32, 'z': jnp.complex128}


def test_skipped_update_keeps_the_state_of_the_transform() -> None:
    optimizer = bo.SGD(1.0, gradient_transform=optax.trace(1.0), on_nonfinite='skip')
    w = registered(optimizer, w=np.zeros(1))['w']
    for slope in (1.0, jnp.nan, 1.0):
        optimizer.update({'w': jnp.full(1, slope)})
    assert (float(w.value[0]), int(optimizer.skipped_count)) == (-3.0, 1)


def test_wrong_transforms() -> None:
    with pytest.raises(TypeError, match=r'Invalid gradient_transform=3\. Must be an optax transformation or a'):
        bo.SGD(gradient_transform=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r'Invalid gradient_transform=3'):
        registered(bo.SGD(groups={'a': {'gradient_transform': 3}}), **START)
    for wrong, error, match in (
        (lambda g: {'a': g['a']}, TypeError, 'Must be a dict with the same names'),
        (lambda g: {key: x.ravel()[:1] for key, x in g.items()}, ValueError, 'changed the shape of a, b'),
    ):
        optimizer = bo.SGD(gradient_transform=wrong)
        states = registered(optimizer, **START)
        with pytest.raises(error, match=match):
            optimizer.update(slopes(0))
        np.testing.assert_array_equal(states['a'].value, START['a'])
    with pytest.raises(ValueError, match='Invalid gradient_transform'):
        bo.to_optax(bo.SGD(gradient_transform=optax.identity()))
    with pytest.raises(ValueError, match='gradient_transform of SGD is fixed'):
        bo.SGD().gradient_transform = optax.identity()


def norms_with_spike(count: int = 14) -> list[float]:
    return [1.0 + 0.1 * (t % 3) for t in range(count)] + [50.0, 1.0, 1.2]


@pytest.mark.parametrize('how', ['skip', 'clip'])
@pytest.mark.parametrize('compiled', [False, True])
def test_spikes_are_skipped_or_clipped(how: Any, compiled: bool) -> None:
    """Against a formula in Python: the mean of the first norms, then a moving average; a spike counts as its bound."""
    optimizer = bo.SGD(1.0, on_spike=how, spike_factor=2.0, spike_decay=0.9, loss_scale=4.0)
    w = registered(optimizer, w=np.zeros(2))['w']
    update = bo.jit(optimizer.update) if compiled else optimizer.update
    mean, expected, skipped = 0.0, 0.0, 0
    for count, norm in enumerate(norms_with_spike()):
        update({'w': jnp.array([4.0 * norm, 0.0])})
        spike = count >= 10 and norm > 2.0 * mean
        step = norm if not spike else 0.0 if how == 'skip' else 2.0 * mean
        sample = 2.0 * mean if spike else norm
        mean += max(0.1, 1 / (count + 1)) * (sample - mean)
        expected -= step
        skipped += spike and how == 'skip'
        np.testing.assert_allclose(w.value, [expected, 0.0], rtol=1e-12)
    assert skipped == (how == 'skip')
    assert int(optimizer.skipped_count) == skipped
    assert int(optimizer.step_count.value) == len(norms_with_spike()) - skipped


def test_spikes_adapt_resume_and_follow_options() -> None:
    optimizer = bo.SGD(1.0, on_spike='skip', spike_decay=0.5)
    w = registered(optimizer, w=np.zeros(1))['w']

    def update(slope: float) -> bool:
        before = float(w.value[0])
        optimizer.update({'w': jnp.full(1, slope)})
        return float(w.value[0]) != before

    assert all(update(1.0) for _ in range(10))
    assert not update(100.0)
    assert sum(update(100.0) for _ in range(10)) >= 5  # a higher level is accepted in the end
    assert not update(jnp.inf)
    again = bo.SGD(1.0, on_spike='skip', spike_decay=0.5)
    state = registered(again, w=np.zeros(1))['w']
    again.load_state_dict(optimizer.state_dict())
    again.update({'w': jnp.full(1, 1e4)})
    assert float(state.value[0]) == 0.0
    with compilations(0):
        again.spike_factor = 1e6
        again.update({'w': jnp.full(1, 1e4)})
    assert float(state.value[0]) == -1e4
    with pytest.raises(ValueError, match='on_spike of SGD is fixed'):
        again.on_spike = 'clip'
    for name, value in (('on_spike', 'raise'), ('spike_factor', 0.0), ('spike_decay', 1.0)):
        with pytest.raises(ValueError, match=f'Invalid {name}='):
            bo.SGD(**{name: value})
    plain = bo.SGD(1.0, on_spike='clip', on_nonfinite='skip')
    w = registered(plain, w=np.zeros(1))['w']
    for slope in [1.0] * 12 + [jnp.nan, 10.0]:
        plain.update({'w': jnp.full(1, slope)})
    assert (float(w.value[0]), int(plain.skipped_count)) == (-15.0, 1)
