"""UniqueStateManager."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp

import braintools_optim as bo


def test_unique_state_manager() -> None:
    a, b = (brainstate.ParamState(jnp.asarray(float(i))) for i in range(2))
    manager = bo.UniqueStateManager()
    assert manager.make_unique({}) == manager.to_pytree() == manager.to_pytree_value() == {}
    manager.make_unique({'layer': {'w': a, 'tied': a}, 'list': [b]})
    assert len(manager) == manager.num_unique_states == 2
    assert manager.to_pytree() == {'layer': {'w': a}, 'list': {0: b}}
    assert manager.to_dict() == {'layer.w': a, 'list.0': b}
    assert manager.to_dict_value() == {'layer.w': a.value, 'list.0': b.value}
    assert manager.get_flattened() == [(('layer', 'w'), a), (('list', 0), b)]
    assert manager.get_state_by_path(('layer', 'w')) is a
    assert manager.get_state_by_path(('nothing',)) is None
    assert manager.update_state(('layer', 'w'), b)
    assert not manager.update_state(('nothing',), b)
    assert manager.merge_with({'more': a}).num_unique_states == 3
    manager.clear()
    assert len(manager) == 0


def test_pytree_structure_is_that_of_the_given_tree() -> None:
    a, b = (brainstate.ParamState({'weight': jnp.zeros(2), 'bias': jnp.zeros(1)}) for _ in range(2))
    tree = {'layer': {'w': a, 'tied': a}, 'list': [b]}
    manager = bo.UniqueStateManager()
    assert manager.pytree_structure is None
    manager.make_unique(tree)
    structure = jax.tree.structure(tree, is_leaf=lambda x: isinstance(x, brainstate.State))
    assert manager.pytree_structure == structure
    assert jax.tree.unflatten(manager.pytree_structure, [b, a, a]) == {'layer': {'tied': b, 'w': a}, 'list': [a]}
    assert manager.merge_with({'more': brainstate.ParamState(jnp.zeros(1))}).pytree_structure == structure
    manager.clear()
    assert manager.pytree_structure is None
