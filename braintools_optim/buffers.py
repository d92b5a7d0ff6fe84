"""Buffers: what may be donated without being lost to another, and how XLA uses them again."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.core import Tracer

__all__ = ['compiler_options', 'unshared']


def unshared(donated: Any, others: Any) -> Any:
    """What is donated, with arrays whose buffer occurs twice or among ``others`` copied."""
    taken = {buffer_of(leaf) for leaf in jax.tree.leaves(others)}
    leaves, structure = jax.tree.flatten(donated)
    if all_differ(leaves, taken):  # nearly always
        return donated
    for i, leaf in enumerate(leaves):
        buffer = buffer_of(leaf)
        if buffer in taken and isinstance(leaf, jax.Array):
            leaves[i] = leaf.copy()
        taken.add(buffer)
    return jax.tree.unflatten(structure, leaves)


def all_differ(leaves: list[Any], taken: set[int]) -> bool:
    """Whether these are arrays on one device whose buffers are all different, and none of ``taken``."""
    try:
        buffers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
    except (AttributeError, TypeError, jax.errors.JaxRuntimeError):
        return False
    return len(buffers) == len(leaves) and 0 not in buffers and taken.isdisjoint(buffers)


def buffer_of(leaf: Any) -> int:
    """What tells buffers apart; two arrays may share one."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array):
        return id(leaf)
    try:
        return leaf.unsafe_buffer_pointer() or id(leaf)
    except jax.errors.JaxRuntimeError:
        if leaf.is_deleted():
            raise
        return id(leaf)  # on several devices


IN_PLACE = {'xla_cpu_copy_insertion_use_region_analysis': True}
QUICKLY = {'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE'}


@functools.cache
def compiler_options(quickly: bool = False) -> dict[str, Any]:
    """What lets XLA on a CPU write a slot in place that another kernel reads, else it copies it; and compile quickly.

    The latter takes a third less time. It leaves small kernels as fast, and may split those of large rules.
    """
    if jax.default_backend() != 'cpu':
        return {}
    return {name: value for name, value in (IN_PLACE | (QUICKLY if quickly else {})).items() if is_known(name, value)}


def is_known(name: str, value: Any) -> bool:
    """Whether this release of XLA knows an option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
