"""A state_dict loads after a way through other containers, which change strings, numbers and lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import braintools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo

Container = Callable[[Any, Path], Any]


def through_braintools(tree: Any, path: Path) -> Any:
    braintools.file.msgpack_save(str(path / 'x.msgpack'), tree)
    return braintools.file.msgpack_load(str(path / 'x.msgpack'))


def through_flax(tree: Any, path: Path) -> Any:
    serialization = pytest.importorskip('flax.serialization')
    return serialization.msgpack_restore(serialization.to_bytes(tree))


CONTAINERS: dict[str, Container] = {
    'numpy': lambda tree, path: jax.tree.map(np.asarray, tree),
    'jax': lambda tree, path: jax.tree.map(lambda x: np.asarray(x) if isinstance(x, str) else jnp.asarray(x), tree),
    'tuples': lambda tree, path: {**tree, 'base_lrs': (*tree['base_lrs'],), 'param_groups': (*tree['param_groups'],)},
    'flax': through_flax,
    'braintools': through_braintools,
}
through = pytest.mark.parametrize('container', CONTAINERS.values(), ids=CONTAINERS)


def build(**options: Any) -> bo.Optimizer:
    weights = {name: brainstate.ParamState(jnp.ones(2)) for name in ('1', '0')}
    schedule = bo.SequentialLR([bo.WarmupScheduler(0.1, 2), bo.MultiStepLR(0.1, [2, 4])], [3])
    optimizer = bo.AdamW(schedule, grad_clip_norm=1.0, loss_scale=bo.DynamicLossScale(), metrics=True, **options)
    optimizer.register_trainable_weights({'1': weights['1']})
    optimizer.add_param_group({'0': weights['0']}, betas=(0.5, 0.75))
    return optimizer


@through
@pytest.mark.usefixtures('float32')
def test_state_dict_loads_from_other_containers(container: Container, tmp_path: Path) -> None:
    optimizer, again = build(), build()
    optimizer.update({'0': jnp.ones(2), '1': jnp.full(2, 2.0)})
    optimizer.lr.step()
    optimizer.param_groups[1]['weight_decay'] = 0.25
    saved = optimizer.state_dict()
    assert again.load_state_dict(container(saved, tmp_path)) == []
    assert jax.tree.all(jax.tree.map(np.array_equal, saved, again.state_dict()))


@through
@pytest.mark.usefixtures('float32')
def test_state_dict_of_sam_loads_from_other_containers(container: Container, tmp_path: Path) -> None:
    if container is CONTAINERS['tuples']:
        pytest.skip('Its state_dict holds no lists.')
    optimizer, again = bo.SAM(build(), rho=0.3), bo.SAM(build(), rho=0.1)
    assert again.load_state_dict(container(optimizer.state_dict(), tmp_path)) == []
    assert again.rho == pytest.approx(0.3)


@through
@pytest.mark.usefixtures('float32')
def test_differences_are_found_in_other_containers(container: Container, tmp_path: Path) -> None:
    other = build(cautious=True)
    with pytest.raises(ValueError, match=r'param_groups\.0\.cautious: False there, True here') as caught:
        other.load_state_dict(container(build().state_dict(), tmp_path))
    assert str(caught.value).count(' there, ') == 2  # one for each group
