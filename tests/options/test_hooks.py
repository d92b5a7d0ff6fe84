"""Hooks run as torch's do: the same calls with the same arguments in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import registered

import braintools_optim as bo

EVENTS = (
    'step_pre', 'step_post', 'state_dict_pre', 'state_dict_post', 'load_state_dict_pre', 'load_state_dict_post',
)  # fmt: skip


def one() -> tuple[bo.SGD, brainstate.ParamState]:
    optimizer = bo.SGD(0.5)
    return optimizer, registered(optimizer, w=np.ones(2))['w']


def test_hooks_run_in_the_order_of_torch() -> None:
    torch = pytest.importorskip('torch')
    ours, _ = one()
    parameter = torch.nn.Parameter(torch.ones(2))
    theirs = torch.optim.SGD([parameter], lr=0.5)
    found: dict[str, list[Any]] = {'ours': [], 'theirs': []}
    handles = {}
    for name, optimizer in (('ours', ours), ('theirs', theirs)):
        for event in EVENTS:
            for mark in ('first', 'second', 'removed'):

                def hook(seen: Any, *args: Any, name: str = name, event: str = event, mark: str = mark) -> None:
                    assert seen in (ours, theirs)
                    found[name].append((event, mark, [type(x).__name__ for x in args]))

                handles[name, event, mark] = getattr(optimizer, f'register_{event}_hook')(hook)
            if not event.startswith('step'):  # torch's step hooks have no prepend
                getattr(optimizer, f'register_{event}_hook')(
                    lambda *args, name=name, event=event: found[name].append((event, 'prepended')), prepend=True
                )
            handles[name, event, 'removed'].remove()
        if name == 'ours':
            ours.update({'w': jnp.ones(2)})
        else:
            parameter.grad = torch.ones(2)
            theirs.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert found['ours'] == [
        entry if len(entry) == 2 else (*entry[:2], ['dict' if x == 'OrderedDict' else x for x in entry[2]])
        for entry in found['theirs']
    ]
    assert len(found['ours']) == 6 * 2 + 4
    handles['ours', 'step_pre', 'removed'].remove()  # a second time does nothing


def test_return_values_act() -> None:
    optimizer, w = one()
    seen: list[Any] = []

    def add_one(optimizer: Any, args: Any, kwargs: Any) -> Any:
        return ({'w': 1 + args[0]['w']},), kwargs

    with optimizer.register_step_pre_hook(lambda o, args, kwargs: (({'w': 2 * args[0]['w']},), kwargs)):
        first = optimizer.register_step_pre_hook(add_one, prepend=True)
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append((float(o.step_count.value), args)))
        optimizer.update({'w': jnp.ones(2)})  # 2 * (1 + 1)
    np.testing.assert_allclose(w.value, -1.0)
    assert (seen[0][0], seen[0][1][0]['w'].tolist()) == (1.0, [4.0, 4.0])
    first.remove()
    optimizer.update({'w': jnp.ones(2)})
    np.testing.assert_allclose(w.value, -1.5)
    with optimizer.register_step_pre_hook(lambda o, args, kwargs: (args, {**kwargs, 'loss_scale': 2.0})):
        optimizer.update({'w': jnp.ones(2)})
    np.testing.assert_allclose(w.value, -1.75)
    optimizer.register_state_dict_post_hook(lambda o, state: {'wrapped': state})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: state['wrapped'])
    loaded: list[int] = []
    optimizer.register_load_state_dict_post_hook(lambda o: loaded.append(int(o.step_count.value)))
    saved = optimizer.state_dict()
    assert saved.keys() == {'wrapped'}
    optimizer.update({'w': jnp.ones(2)})
    optimizer.load_state_dict(saved)
    assert loaded == [3]


def test_hooks_of_files_and_of_runs(tmp_path: Path) -> None:
    optimizer, _ = one()
    calls: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append('save'))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append('load'))
    optimizer.save(tmp_path / 'run.npz')
    optimizer.load(tmp_path / 'run.npz')
    assert calls == ['save', 'load']
    with pytest.raises(ValueError, match=r'does not fit|Invalid'):
        optimizer.load_state_dict({})
    assert calls == ['save', 'load']


@pytest.mark.parametrize('compiled', [brainstate.transform.jit, bo.jit, 'minimize'])
def test_hooks_in_compiled_steps_run_once_with_traced_values(compiled: Any) -> None:
    optimizer, w = one()
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(args[0]))
    if compiled == 'minimize':

        def loss() -> Any:
            return jnp.sum(w.value**2)

        for _ in range(3):
            optimizer.minimize(loss)
    else:
        step = compiled(lambda g: optimizer.update({'w': g}))
        for _ in range(3):
            step(jnp.ones(2))
    assert 1 <= len(seen) <= 2  # brainstate looks at the States of a function once before it compiles
    assert all(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(seen))


def test_sam_and_wrong_hooks() -> None:
    optimizer, w = one()
    sam = bo.SAM(optimizer)
    seen: list[str] = []
    sam.register_step_post_hook(lambda o, args, kwargs: seen.append(type(o).__name__))
    sam.update({'w': jnp.ones(2)}, value_fn=lambda: jnp.sum(w.value))
    assert seen == ['SGD'] * len(seen) and seen  # noqa: PT018
    for event in EVENTS:
        with pytest.raises(TypeError, match='Invalid hook=3'):
            getattr(optimizer, f'register_{event}_hook')(3)
        with pytest.raises(TypeError, match='Invalid prepend=1'):
            getattr(optimizer, f'register_{event}_hook')(print, prepend=1)
    optimizer, w = one()
    optimizer.register_step_pre_hook(lambda o, args, kwargs: args)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match='A step pre-hook returned'):
        optimizer.update({'w': jnp.ones(2)})
    np.testing.assert_array_equal(w.value, 1.0)
