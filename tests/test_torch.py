"""The trajectories are torch's, for every combination of options: recorded, and live where torch is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from golden.record import torch_path
from table import CASES, RECORDED, STEPS, Case, deviation, run, thinned

import braintools_optim as bo

RECORDS = np.load(Path(__file__).parent / 'golden' / 'torch.npz')
HAS_TORCH = importlib.util.find_spec('torch') is not None


def assert_no_worse_than_torch(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """In float32: within twice torch's error, but for a few roundings of a single small tensor."""
    assert max(ours.values()) <= 2 * max(theirs.values())
    assert all(ours[key] <= max(2 * theirs[key], 1e-6) for key in ours)


@thinned(CASES)
def test_float64(case: Case) -> None:
    path = run(case, np.float64)
    flat = np.concatenate([p[list(RECORDED)].reshape(len(RECORDED), -1) for p in path.values()], axis=1)
    distance = RECORDS[f'{case.name}/travelled'].repeat([p[0].size for p in path.values()], axis=0).T
    assert np.max(np.abs(flat - RECORDS[f'{case.name}/path']) / distance) < 1e-12
    if HAS_TORCH:
        assert max(deviation(path, torch_path(case, 'float64', STEPS)).values()) < 1e-12


@thinned([case for case in CASES if not dict(case.options).get('maximize')], one_in=3)
@pytest.mark.usefixtures('float32')
def test_float32(case: Case) -> None:
    path = run(case, np.float32)
    sizes = np.cumsum([p[0].size for p in path.values()])[:-1]
    exact = np.split(RECORDS[f'{case.name}/path'], sizes, axis=1)
    travelled = RECORDS[f'{case.name}/travelled']
    ours = {
        key: float(np.max(np.abs(p[list(RECORDED)].reshape(len(RECORDED), -1) - e).max(axis=1) / t))
        for (key, p), e, t in zip(path.items(), exact, travelled, strict=True)
    }
    assert_no_worse_than_torch(ours, dict(zip(path, RECORDS[f'{case.name}/float32'], strict=True)))
    if HAS_TORCH:
        exact, rounded = torch_path(case, 'float64', STEPS), torch_path(case, 'float32', STEPS)
        assert_no_worse_than_torch(deviation(path, exact), deviation(rounded, exact))


@pytest.mark.parametrize('x64', [True, False])
def test_rectification_starts_at_torchs_step(x64: bool, request: pytest.FixtureRequest) -> None:
    """The formula in Python's float64, which is what torch evaluates, decides."""
    from braintools_optim.options import to_leaf
    from braintools_optim.rules.adam import sma_length

    if not x64:
        request.getfixturevalue('float32')
    steps = np.arange(1, 400)
    for beta in [0.3, 0.5, 0.6, 0.65, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99995, 0.99999]:
        rho_inf = 2 / (1 - beta) - 1
        rho = np.array([rho_inf - 2 * int(t) * beta ** int(t) / (1 - beta ** int(t)) for t in steps])
        ours_inf, ours = sma_length(to_leaf('betas', beta), jnp.asarray(steps))
        assert ((np.asarray(ours) > 5) == (rho > 5)).all()
        np.testing.assert_allclose(ours, rho, rtol=1e-9 if x64 else 1e-6)
        np.testing.assert_allclose(ours_inf, rho_inf, rtol=1e-9 if x64 else 1e-6)


@pytest.mark.usefixtures('float32')
def test_bias_corrections_of_float32_are_those_of_float64() -> None:
    from braintools_optim.options import to_leaf

    steps = np.arange(1, 2000)
    for beta in (0.3, 0.9, 0.999, 0.9999, 0.99999):
        exact = -np.expm1(steps * np.log(beta))
        ours = np.asarray(to_leaf('betas', beta).correction(jnp.asarray(steps)))
        assert np.max(np.abs(ours - exact)) < 1e-7
        np.testing.assert_allclose(ours, exact, rtol=5e-7)


def test_the_table_has_every_optimizer() -> None:
    derived = {bo.Momentum, bo.MomentumNesterov}  # SGD under another name
    assert {case.optimizer for case in CASES} | derived == {bo.SGD, bo.Adam, bo.AdamW, bo.RAdam, bo.RMSprop} | derived


@pytest.mark.parametrize(
    ('name', 'cls', 'overrides'),
    [
        ('SGD', bo.SGD, [{}, {'momentum': 0.9, 'nesterov': True}, {'weight_decay': 0.1}]),
        ('Adam', bo.Adam, [{}, {'betas': (0.5, 0.9), 'amsgrad': True}, {'weight_decay': 0.1, 'eps': 1e-3}]),
        ('AdamW', bo.AdamW, [{}, {'betas': (0.5, 0.9)}, {'weight_decay': 0.3, 'maximize': True}]),
        ('RAdam', bo.RAdam, [{}, {'betas': (0.5, 0.9)}, {'weight_decay': 0.1, 'decoupled_weight_decay': True}]),
        ('RMSprop', bo.RMSprop, [{}, {'alpha': 0.5, 'centered': True}, {'momentum': 0.9}]),
    ],
)
def test_groups_with_a_schedule_and_clipping(
    name: str, cls: type[bo.Optimizer], overrides: list[dict[str, Any]]
) -> None:
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(0)
    rates, start, steps = (0.01, 0.05, 0.002), [rng.normal(size=(2, 2)) for _ in range(3)], 100
    slopes = rng.normal(size=(steps, 3, 2, 2))
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    groups = [{'params': [p], 'lr': lr, **o} for p, lr, o in zip(parameters, rates, overrides, strict=True)]
    theirs = getattr(torch.optim, name)(groups)
    schedule = torch.optim.lr_scheduler.StepLR(theirs, 10, 0.7)
    states = [brainstate.ParamState(jnp.asarray(w)) for w in start]
    ours = cls(bo.StepLR(rates[0], 10, 0.7), grad_clip_norm=2.0).register_trainable_weights({'0': states[0]})
    for i in (1, 2):
        ours.add_param_group({str(i): states[i]}, lr=rates[i], **overrides[i])
    travelled = 0.0
    for t in range(steps):
        before = [p.detach().numpy().copy() for p in parameters]
        for i, p in enumerate(parameters):
            p.grad = torch.tensor(slopes[t, i])
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        theirs.step()
        schedule.step()
        ours.update({str(i): jnp.asarray(slopes[t, i]) for i in range(3)})
        ours.lr.step()
        now = [p.detach().numpy() for p in parameters]
        travelled += np.array([np.max(np.abs(a - b)) for a, b in zip(now, before, strict=True)])
        error = np.array([np.max(np.abs(a - np.array(s.value))) for a, s in zip(now, states, strict=True)])
        assert np.max(error / travelled) < 1e-12
