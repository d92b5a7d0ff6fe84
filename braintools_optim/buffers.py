"""Buffers: what may be donated without being lost to another, and how XLA uses them again."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax

__all__ = ['block_for', 'compiler_options', 'unshared']


def unshared(donated: Any, others: Any) -> Any:
    """What is donated, with arrays whose buffer occurs twice or among ``others`` copied; itself if there are none."""
    taken = {buffer for leaf in jax.tree.leaves(others) for buffer in buffers_of(leaf)}
    leaves, structure = jax.tree.flatten(donated)
    own = []
    for leaf in leaves:
        buffers = buffers_of(leaf)
        own.append(leaf.copy() if not taken.isdisjoint(buffers) and isinstance(leaf, jax.Array) else leaf)
        taken.update(buffers)
    return donated if all(map(operator.is_, own, leaves)) else jax.tree.unflatten(structure, own)


def buffers_of(leaf: Any) -> list[int]:
    """What tells buffers apart, one on each device; two arrays may share one."""
    try:
        return [leaf.unsafe_buffer_pointer() or id(leaf)]
    except (AttributeError, TypeError):  # no array of jax, or traced
        return [id(leaf)]
    except jax.errors.JaxRuntimeError:
        if leaf.is_deleted():
            raise
    return [buffer for shard in leaf.addressable_shards for buffer in buffers_of(shard.data)]


IN_PLACE = {'xla_cpu_copy_insertion_use_region_analysis': True}
QUICKLY = {'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE'}
IN_BLOCKS = 'xla_multiheap_size_constraint_per_heap'
BLOCK = 2**24  # bytes; glibc keeps no block of 2**25


def block_for(sizes: Sequence[int]) -> int | None:
    """The size of the blocks in which temporary memory is to come, None if all may be in one; given those of arrays."""
    return max(BLOCK, *sizes) if sum(sizes) > BLOCK else None


@functools.cache
def compiler_options(quickly: bool = False, block: int | None = None) -> dict[str, Any]:
    """What lets XLA on a CPU write a slot in place that another kernel reads, else it copies it; and compile quickly.

    The latter takes a third less time. It leaves small kernels as fast, and may split those of large rules.
    Temporary memory in blocks is found again by the next call; what is larger goes back to the system, and every page
    of it is made anew.
    """
    if jax.default_backend() != 'cpu':
        return {}
    wanted = IN_PLACE | (QUICKLY if quickly else {})
    options: dict[str, Any] = {name: value for name, value in wanted.items() if is_known(name, value)}
    if block is not None and is_known(IN_BLOCKS, BLOCK):
        options[IN_BLOCKS] = block
    return options


@functools.cache
def is_known(name: str, value: Any) -> bool:
    """Whether this release of XLA knows an option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
