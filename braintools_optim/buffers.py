"""Buffers: what may be donated without being lost to another, and how XLA uses them again."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
from jax.tree_util import tree_leaves

__all__ = ['Made', 'block_for', 'compiler_options', 'unshared']


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


def is_spread(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


class Made:
    """What a compiled function made last, to be donated to its next call, and whether that shares a buffer.

    To look at all buffers takes time: it is left out while ids tell that nothing has changed since none was shared.
    Another array of the same buffer is refused by jax then, before anything has run.
    """

    def __init__(self) -> None:
        self.values: list[int] | None = None
        self.arrays: frozenset[int] = frozenset()
        self.trusted = False

    def is_alone(self, donated: list[Any], others: Any) -> bool:
        """Whether it is this that is donated, found to share no buffer, and none of it is among ``others``."""
        unused = self.trusted and self.arrays.isdisjoint(map(id, tree_leaves(others)))
        return unused and list(map(id, donated)) == self.values

    def separated(self, donated: list[Any], others: Any) -> list[Any]:
        """What is donated, with buffers of its own."""
        if self.is_alone(donated, others):
            return donated
        own: list[Any] = unshared(donated, others)
        clean = own is donated and list(map(id, donated)) == self.values
        self.trusted = clean and not any(map(is_spread, tree_leaves(donated)))  # jax breaks down where it refuses one
        return own

    def remember(self, values: list[Any]) -> None:
        """This has been made now."""
        self.values, self.arrays = list(map(id, values)), frozenset(map(id, tree_leaves(values)))


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
