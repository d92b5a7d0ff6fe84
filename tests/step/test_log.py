"""Metrics of single weights, and the log: numbers by flat names for writers."""

from __future__ import annotations

import json
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import GRADS, four_gradients, four_leaves, gradients_by_name, optimizer_in_use, values_by_name

import braintools_optim as bo

NAMES = ['a.bias', 'a.weight', 'b.tau', 'b.weight']


def norm(x: Any) -> float:
    return float(np.linalg.norm(np.ravel(x)))


@pytest.mark.parametrize('where', ['eager', 'jit', 'loop'])
@pytest.mark.parametrize('over', ['all', 'weight'])
def test_metrics_of_weights_equal_numpy(where: str, over: Any) -> None:
    states = four_leaves()
    optimizer = bo.SGD(0.1, grad_clip_norm=1.0, grad_clip_value=0.25, grad_clip_over=over, metrics='weights')
    optimizer.register_trainable_weights(states)
    assert optimizer.weight_names == NAMES
    before, g = values_by_name(states), gradients_by_name(0)

    def update() -> None:
        optimizer.update(four_gradients(0))

    if where == 'loop':
        brainstate.transform.for_loop(lambda _: update(), jnp.arange(1))
    else:
        (update if where == 'eager' else brainstate.transform.jit(update))()
    after, log = values_by_name(states), optimizer.log()
    total = norm(np.concatenate([np.ravel(x) for x in g.values()]))
    for i, name in enumerate(NAMES):
        factor = min(1.0, 1.0 / (total if over == 'all' else norm(g[name])))
        expected = {
            'grad_norm': norm(g[name]),
            'weight_norm': norm(before[name]),
            'update_ratio': norm(after[name] - before[name]) / norm(before[name]),
            'clipped_entries': np.mean(abs(g[name] * factor) > 0.25),
        }
        for key, value in expected.items():
            np.testing.assert_allclose(log[f'{key}/{name}'], value, rtol=1e-5)
        np.testing.assert_allclose(optimizer.metrics['grad_norms'][i], norm(g[name]), rtol=1e-6)
    assert 0 < sum(log[f'clipped_entries/{name}'] for name in NAMES) < len(NAMES)


def test_weights_without_update_and_weights_of_other_kinds() -> None:
    """Frozen weights, missing gradients, quantities in another unit, half precision, complex numbers, large arrays."""
    states: dict[str, Any] = {
        'frozen': jnp.full(2, 3.0),
        'missing': jnp.ones(4),
        'mV': jnp.array([3.0, 4.0]) * u.mV,
        'half': jnp.ones(2, jnp.bfloat16),
        'complex': jnp.array([3.0 + 4.0j]),
        'large': jnp.ones((80, 80)),
    }
    weights = {name: brainstate.ParamState(x) for name, x in states.items()}
    optimizer = bo.SGD(0.5, metrics='weights', norm_unit=[u.volt, u.UNITLESS]).register_trainable_weights(weights)
    optimizer.freeze('frozen')
    gradients = {name: jnp.ones_like(x) for name, x in states.items() if name != 'mV'} | {'mV': jnp.ones(2) * u.mV}
    optimizer.update({**gradients, 'missing': None}, partial=True)
    log = optimizer.log()
    norms = {'frozen': 0.0, 'missing': 0.0, 'mV': 2**0.5 * 1000, 'half': 2**0.5, 'complex': 1.0, 'large': 80.0}
    sizes = {'frozen': 18**0.5, 'missing': 2.0, 'mV': 0.005, 'half': 2**0.5, 'complex': 5.0, 'large': 80.0}
    changes = {**norms, 'mV': 2**0.5 / 1000}
    for name in states:
        np.testing.assert_allclose(log[f'grad_norm/{name}'], norms[name], rtol=1e-6)
        np.testing.assert_allclose(log[f'weight_norm/{name}'], sizes[name], rtol=1e-6)
        np.testing.assert_allclose(log[f'update_ratio/{name}'], 0.5 * changes[name] / sizes[name], rtol=1e-6)
    assert log['clipped_entries/large'] == 0.0
    np.testing.assert_allclose(log['grad_norm'], norm([*norms.values()]), rtol=1e-6)
    np.testing.assert_allclose(log['update_norm'], 0.5 * norm([*changes.values()]), rtol=1e-6)
    updated = norm([*sizes.values()][2:])
    np.testing.assert_allclose(log['update_ratio/group/0'], log['update_norm'] / updated, rtol=1e-6)


@pytest.mark.parametrize('cls', [bo.Adam, bo.Prodigy, bo.Muon], ids=lambda cls: cls.__name__)
def test_log_of_groups_is_json(cls: Any) -> None:
    more = {'adamw_lr': 0.1} if cls is bo.Muon else {}
    optimizer, _ = optimizer_in_use(cls, metrics='weights', loss_scale=4.0, **more)
    log = optimizer.log()
    assert json.loads(json.dumps(log)) == log
    assert {type(value) for value in log.values()} == {float}
    groups = range(len(optimizer.param_groups))
    per_weight = [f'{kind}/{name}' for kind in ('grad_norm', 'update_ratio', 'weight_norm', 'clipped_entries')
                  for name in optimizer.weight_names]  # fmt: skip
    alone = ['step', 'grad_norm', 'clipped', 'clipped_fraction', 'update_norm', 'skipped']
    assert log.keys() == {
        *alone,
        *per_weight,
        *(f'lr/{i}' for i in groups),
        *(f'update_ratio/group/{i}' for i in groups),
    }
    assert (log['step'], log['lr/0'], log['skipped']) == (1.0, 0.1, 0.0)
    np.testing.assert_allclose(log['grad_norm/w'], norm(GRADS['w']) / 4, rtol=1e-6)
    optimizer.reset()
    assert set(optimizer.log().values()) == {0.0}


def test_log_takes_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, _ = optimizer_in_use(metrics='weights')
    transfers = []
    monkeypatch.setattr(jax, 'device_get', lambda x, get=jax.device_get: transfers.append(x) or get(x))
    log = optimizer.log()
    assert len(transfers) == 1
    with jax.transfer_guard('disallow'):  # nothing else is moved
        assert optimizer.log() == log


def test_log_without_metrics_and_inside_jit() -> None:
    optimizer, _ = optimizer_in_use(metrics=True)
    assert 'grad_norm/w' not in optimizer.log()
    with pytest.raises(ValueError, match=r'log\(\) cannot be called inside a transformation'):
        brainstate.transform.jit(lambda: optimizer.log())()
    with pytest.raises(ValueError, match='Give metrics=True'):
        optimizer_in_use()[0].log()
    for value in (1, 'weight', None):
        with pytest.raises(TypeError, match=f"Invalid metrics={value!r}. Must be True, False or 'weights'."):
            bo.Adam(metrics=value)  # type: ignore[arg-type]
