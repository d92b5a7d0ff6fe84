"""Whole runs equal torch, with groups, schedules, clipping and partial updates."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from models import FOUR_LEAVES, four_gradients, four_leaves, gradients_by_name, values_by_name

import braintools_optim as bo


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


@pytest.mark.parametrize('name', ['SGD', 'Adam', 'RMSprop', 'RAdam'])
def test_partial_updates_equal_torch(name: str) -> None:
    torch = pytest.importorskip('torch')
    options = {'momentum': 0.9, 'weight_decay': 0.1} if name in ('SGD', 'RMSprop') else {'weight_decay': 0.1}
    parameters = {k: torch.nn.Parameter(torch.tensor(w, dtype=torch.float64)) for k, w in FOUR_LEAVES.items()}
    theirs = getattr(torch.optim, name)(parameters.values(), lr=0.1, **options)
    states = four_leaves()
    ours = getattr(bo, name)(0.1, grad_clip_norm=1.0, **options).register_trainable_weights(states)
    for t, without in enumerate([(), ('a.bias',), ('a.weight', 'b.tau'), tuple(FOUR_LEAVES), ('b.weight',), ()]):
        for key, parameter in parameters.items():
            parameter.grad = None if key in without else torch.tensor(gradients_by_name(t)[key])
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        theirs.step()
        ours.update(four_gradients(t, *without), partial=True)
        for key, parameter in parameters.items():
            np.testing.assert_allclose(
                values_by_name(states)[key], parameter.detach(), rtol=1e-12, err_msg=f'{t} {key}'
            )


def one_weight(optimizer: bo.Optimizer, start: float = 0.0) -> brainstate.ParamState:
    w = brainstate.ParamState(jnp.asarray(start))
    optimizer.register_trainable_weights({'w': w})
    return w


@pytest.mark.parametrize(('name', 'cls'), [('SGD', bo.SGD), ('Adam', bo.Adam), ('RMSprop', bo.RMSprop)])
def test_cycled_momentum_equals_torch(name: str, cls: Any) -> None:
    torch = pytest.importorskip('torch')
    common = {'momentum': 0.9} if name != 'Adam' else {}
    parameter = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    theirs = getattr(torch.optim, name)([parameter], lr=0.1, **common)
    cycle = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.2, 12, cycle_momentum=True)
    schedule = bo.schedulers.OneCycleLR(0.2, 12, cycle_momentum=True)
    ours = cls(schedule, **common)
    w = one_weight(ours, 1.0)
    update = brainstate.transform.jit(lambda g: (ours.update({'w': g}), schedule.step())[0])
    for t in range(12):
        group = theirs.param_groups[0]
        momentum = ours.betas[0] if name == 'Adam' else ours.momentum
        assert momentum == pytest.approx(group['betas'][0] if name == 'Adam' else group['momentum'], rel=1e-12)
        slope = np.sin(t + 1.0)
        parameter.grad = torch.tensor(slope, dtype=torch.float64)
        theirs.step()
        cycle.step()
        update(jnp.asarray(slope))
        np.testing.assert_allclose(w.value, parameter.item(), rtol=1e-12)
