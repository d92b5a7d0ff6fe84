"""Averages of the weights, seen through ``eval_weights``, against torch.optim.swa_utils."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import registered

import braintools_optim as bo

START = {'a': np.array([1.0, -2.0, 3.0]), 'b': np.array([[0.5, 4.0]])}
AVERAGES: dict[str, bo.Average] = {
    'ema': bo.EMA(0.9),
    'swa': bo.SWA(start=3, every=2),
    'polyak': bo.Polyak(),
}


def slopes(t: int, **start: Any) -> dict[str, Any]:
    rng = np.random.default_rng(t)
    return {key: jnp.asarray(rng.normal(size=x.shape)) for key, x in (start or START).items()}


def averages(optimizer: Any, states: dict[str, brainstate.ParamState]) -> dict[str, np.ndarray]:
    with optimizer.eval_weights():
        return {key: np.array(state.value) for key, state in states.items()}


@pytest.mark.parametrize('name', AVERAGES)
def test_average_equals_torchs(name: str) -> None:
    torch = pytest.importorskip('torch')
    swa_utils = torch.optim.swa_utils
    model = torch.nn.ParameterDict({key: torch.nn.Parameter(torch.tensor(x)) for key, x in START.items()})
    theirs = torch.optim.Adam(model.values(), lr=0.1)
    options = {'multi_avg_fn': swa_utils.get_ema_multi_avg_fn(0.9)} if name == 'ema' else {}
    averaged = swa_utils.AveragedModel(model, **options)
    counts = {'ema': range(1, 9), 'swa': range(3, 9, 2), 'polyak': range(1, 9)}[name]
    optimizer = bo.Adam(0.1, average=AVERAGES[name])
    states = registered(optimizer, **START)
    for key, x in averages(optimizer, states).items():  # before the first update
        np.testing.assert_array_equal(x, START[key])
    for t in range(1, 9):
        grads = slopes(t)
        optimizer.update(grads)
        for key, parameter in model.items():
            parameter.grad = torch.tensor(np.asarray(grads[key]))
        theirs.step()
        if t in counts:
            averaged.update_parameters(model)
        for key, x in averages(optimizer, states).items():
            expected = (averaged.module if t >= counts[0] else model)[key]
            np.testing.assert_allclose(x, expected.detach().numpy(), rtol=1e-12)
            np.testing.assert_allclose(states[key].value, model[key].detach().numpy(), rtol=1e-12)


def test_warmup_of_ema() -> None:
    """The decay rate is min(d, (1 + n) / (10 + n)) after n earlier updates."""
    optimizer = bo.SGD(1.0, average=bo.EMA(0.5, warmup=True))
    w = registered(optimizer, w=np.array([0.0]))
    expected = None
    for n in range(12):
        optimizer.update({'w': -jnp.asarray([float(n)])})
        x, decay = float(w['w'].value[0]), min(0.5, (1 + n) / (10 + n))
        expected = x if expected is None else decay * expected + (1 - decay) * x
        assert averages(optimizer, w)['w'][0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('how', ['eager', 'jit', 'for_loop', 'resumed', 'partial'])
def test_average_in_all_ways_of_training(how: str) -> None:
    def build(**start: Any) -> tuple[Any, dict[str, brainstate.ParamState]]:
        optimizer = bo.Momentum(0.1, average=bo.EMA(0.8), constraints={'a': bo.constraints.box(-1.0, 1.0)})
        return optimizer, registered(optimizer, **start)

    optimizer, states = build(**START)
    fixed = slopes(0)
    if how == 'for_loop':
        brainstate.transform.for_loop(lambda _: optimizer.update(fixed), jnp.arange(6))
    else:
        step = bo.jit(lambda: optimizer.update(fixed)) if how == 'jit' else None
        for t in range(6):
            if t == 3 and how == 'resumed':
                saved = optimizer.state_dict()
                optimizer, states = build(**{key: np.array(s.value) for key, s in states.items()})
                optimizer.load_state_dict(saved)
            if step is None:
                optimizer.update(fixed, partial=how == 'partial')
            else:
                step()
    plain = bo.Momentum(0.1, constraints={'a': bo.constraints.box(-1.0, 1.0)})
    again = registered(plain, **START)
    expected: dict[str, np.ndarray] = {}
    for _ in range(6):
        plain.update(fixed)
        for key, state in again.items():
            x = np.array(state.value)
            expected[key] = 0.8 * expected[key] + 0.2 * x if key in expected else x
    for key, x in averages(optimizer, states).items():
        np.testing.assert_allclose(x, expected[key], rtol=1e-12, err_msg=key)


def test_low_precision_weights_are_averaged_in_float32() -> None:
    optimizer = bo.SGD(1e-3, average=bo.EMA(0.99), state_dtype='float16', rounding='stochastic')
    w = registered(optimizer, w=jnp.ones(3, jnp.bfloat16), z=jnp.ones(2, complex))
    optimizer.update({'w': jnp.ones(3, jnp.bfloat16), 'z': jnp.ones(2, complex)})
    slots = optimizer.opt_state.value['average']
    assert {key: x.dtype for key, x in slots.items()} == {'w': jnp.float32, 'z': jnp.float64}
    seen = averages(optimizer, w)
    assert (seen['w'].dtype, seen['z'].dtype) == (jnp.bfloat16, complex)
    np.testing.assert_array_equal(seen['z'], w['z'].value)


def test_skipped_updates_and_frozen_weights_leave_the_average() -> None:
    optimizer = bo.SGD(0.1, average=bo.Polyak(), on_nonfinite='skip')
    optimizer.freeze('b')
    states = registered(optimizer, **START)
    optimizer.update({'a': slopes(1)['a']})
    before = averages(optimizer, states)
    optimizer.update({'a': jnp.full(3, jnp.nan)})
    after = averages(optimizer, states)
    for key in START:
        np.testing.assert_array_equal(after[key], before[key])
    np.testing.assert_array_equal(after['b'], START['b'])
    assert optimizer.skipped_count == 1
    optimizer.unfreeze('b')
    optimizer.update(slopes(2))
    np.testing.assert_array_equal(averages(optimizer, states)['b'], states['b'].value)


def recipe() -> Any:
    """Return the function of the guide that computes the statistics of batch normalization anew."""
    page = (Path(__file__).parents[2] / 'docs' / 'loop.md').read_text()
    found = re.search(r'^def update_statistics.*?(?=\n\n\n)', page, re.MULTILINE | re.DOTALL)
    assert found is not None
    namespace: dict[str, Any] = {'brainstate': brainstate}
    exec(found[0], namespace)
    return namespace['update_statistics']


def test_statistics_of_batch_normalization_equal_torchs() -> None:
    """torch keeps the unbiased variance, brainstate the biased one."""
    rng, size = np.random.default_rng(0), 4
    batches = [rng.normal(2.0, 3.0, (size, 3)) for _ in range(5)]
    net = brainstate.nn.Sequential(brainstate.nn.Linear(3, 2), brainstate.nn.BatchNorm0d(2, dtype=jnp.float64))
    linear, norm = net.nodes()[('layers', 0)], net.nodes()[('layers', 1)]
    momentum = norm.momentum
    recipe()(net, [jnp.asarray(x) for x in batches])
    assert norm.momentum is momentum
    weights = {key: np.asarray(x, np.float64) for key, x in linear.weight.value.items()}
    hidden = [x @ weights['weight'] + weights['bias'] for x in batches]
    np.testing.assert_allclose(norm.running_mean.value, np.mean([h.mean(axis=0) for h in hidden], axis=0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.value, np.mean([h.var(axis=0) for h in hidden], axis=0), rtol=1e-5)
    torch = pytest.importorskip('torch')
    theirs = torch.nn.BatchNorm1d(2, dtype=torch.float64)
    torch.optim.swa_utils.update_bn([torch.tensor(h) for h in hidden], theirs)
    np.testing.assert_allclose(norm.running_mean.value, theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.value, theirs.running_var.numpy() * (size - 1) / size, rtol=1e-5)


def test_wrong_averages() -> None:
    with pytest.raises(ValueError, match=r'ScheduleFreeSGD has evaluation weights of its own'):
        bo.ScheduleFreeSGD(average=bo.Polyak())
    with pytest.raises(ValueError, match=r'ASGD has evaluation weights of its own'):
        bo.ASGD(average=bo.Polyak())
    optimizer = bo.SGD(average=bo.Polyak(), groups={'a': bo.ScheduleFreeSGD()})
    with pytest.raises(ValueError, match='as the optimizer of a group under average='):
        registered(optimizer, **START)
    with pytest.raises(ValueError, match='give it to Adam'):
        registered(bo.Adam(groups={'a': bo.SGD(average=bo.EMA())}), **START)
    with pytest.raises(TypeError, match=r'Invalid average=0\.9. Must be an average such as EMA'):
        bo.SGD(average=0.9)  # type: ignore[arg-type]
    for wrong in (lambda: bo.EMA(1.0), lambda: bo.EMA(-0.1), lambda: bo.SWA(start=0), lambda: bo.SWA(every=0)):
        with pytest.raises(ValueError, match='Invalid'):
            wrong()
    for unfit in (lambda: bo.EMA('0.9'), lambda: bo.SWA(start=1.5), lambda: bo.EMA(0.9, warmup=1)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match='Invalid'):
            unfit()
    with pytest.raises(ValueError, match='average of SGD is fixed'):
        bo.SGD().average = bo.EMA()
    with pytest.raises(ValueError, match='Invalid average'):
        bo.to_optax(bo.SGD(average=bo.EMA()))
    one, other = bo.SGD(average=bo.EMA(0.9)), bo.SGD(average=bo.EMA(0.8))
    registered(one, **START)
    registered(other, **START)
    with pytest.raises(ValueError, match=r'average\.decay: 0\.9 there, 0\.8 here'):
        other.load_state_dict(one.state_dict())
