"""Buffers: which arrays may be donated, and the compiler options that let XLA reuse them.

Measured with jaxlib 0.10.2 on two CPU cores: :data:`IN_PLACE` removes the copy of slots that one kernel reads and
another replaces, so that elementwise optimizers need no temporary memory. :data:`QUICKLY` takes a third off the
compilation of many small parameters. :data:`IN_BLOCKS` halves the time of a large donating step, because the C library
returns larger blocks to the system after each call. The results are the same without these options.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import TypeVar

import jax
from brainstate import State
from jax.sharding import SingleDeviceSharding
from jax.tree_util import tree_leaves

from braintools_optim.compiled.access import read
from braintools_optim.options.types import Tree

__all__ = ['DonationCache', 'block_for', 'compiler_options', 'is_lost', 'raise_if_lost', 'unshared']

T = TypeVar('T')


def unshared(donated: T, others: Tree) -> T:
    """Return the donated arrays with copies of those whose buffer occurs twice or among ``others``."""
    taken = set(map(buffer_of, jax.tree.leaves(others)))
    leaves, structure = jax.tree.flatten(donated)
    copies = []
    for leaf in leaves:
        buffer = buffer_of(leaf)
        copies.append(leaf.copy() if buffer in taken and isinstance(leaf, jax.Array) else leaf)
        taken.add(buffer)
    copied: T = donated if all(map(operator.is_, copies, leaves)) else jax.tree.unflatten(structure, copies)
    return copied


def buffer_of(leaf: Tree) -> int:
    """Return the address of the buffer of an array, of its first part if the array lies on several devices.

    Two arrays may share buffers. Arrays that one compiled function takes lie on the same devices in the same order, so
    that they share all parts or none.
    """
    try:
        part = leaf if isinstance(leaf.sharding, SingleDeviceSharding) else leaf.addressable_data(0)
        address: int = part.unsafe_buffer_pointer()
    except (AttributeError, TypeError):  # no array of jax, or traced
        return id(leaf)
    return address or id(leaf)


def is_lost(leaf: object) -> bool:
    """Return whether a leaf is an array whose buffer was donated."""
    return isinstance(leaf, jax.Array) and leaf.is_deleted()


def raise_if_lost(states: Iterable[tuple[str, State]]) -> None:
    """Raise an error that names the first State whose array was deleted, if there is one."""
    for name, state in states:
        if lost := [leaf for leaf in jax.tree.leaves(read([state], direct=True)) if is_lost(leaf)]:
            named = name or state.name or f'a {type(state).__name__} of shape {lost[0].shape}'
            state.raise_error_with_source_info(
                RuntimeError(
                    f'The array of {named} has been deleted: a function that reuses buffers (braintools_optim.jit, '
                    f'minimize, donate_weights) replaced the array, and the State was given the old one again. Keep '
                    f'jnp.copy(state.value) of a value that is needed later.'
                )
            )


def is_spread(leaf: object) -> bool:
    """Return whether an array lies on several devices."""
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


class DonationCache:
    """Remembers the outputs of a compiled function that are donated to its next call, and whether they share a buffer.

    Comparing all buffer addresses takes time (about 10 us for 12 arrays), and is skipped while the ids of the arrays
    show that nothing has changed since no buffer was shared. If another array of the same buffer is donated then, jax
    refuses it before anything has run.
    """

    def __init__(self) -> None:
        self.values: list[int] | None = None
        self.arrays: frozenset[int] = frozenset()
        self.trusted = False

    def is_unaliased(self, donated: list[Tree], others: Tree) -> bool:
        """Return True if the donated arrays are the last call's outputs and none aliases another argument."""
        unused = self.trusted and self.arrays.isdisjoint(map(id, tree_leaves(others)))
        return unused and list(map(id, donated)) == self.values

    def unaliased(self, donated: list[Tree], others: Tree) -> list[Tree]:
        """Return the donated arrays, copied where another argument shares their buffer."""
        if self.is_unaliased(donated, others):
            return donated
        copied = unshared(donated, others)
        clean = copied is donated and list(map(id, donated)) == self.values
        # where jax refuses a donated buffer on several devices, the process ends
        self.trusted = clean and not any(map(is_spread, tree_leaves(donated)))
        return copied

    def remember(self, values: list[Tree]) -> None:
        """Remember the outputs of a call."""
        self.values, self.arrays = list(map(id, values)), frozenset(map(id, tree_leaves(values)))


IN_PLACE = {'xla_cpu_copy_insertion_use_region_analysis': True}
QUICKLY = {'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE'}
IN_BLOCKS = 'xla_multiheap_size_constraint_per_heap'
BLOCK = 2**24
"""Bytes of a block of temporary memory; the C library does not keep a block of 2**25 bytes."""


def block_for(sizes: Sequence[int]) -> int | None:
    """Return the size of blocks of temporary memory, None if one block will do, from the sizes of the arrays."""
    return max(BLOCK, *sizes) if sum(sizes) > BLOCK else None


@functools.cache
def compiler_options(quickly: bool = False, block: int | None = None) -> dict[str, bool | str | int]:
    """Return the options for XLA on a CPU: to write slots in place, to compile quickly, to allocate in blocks.

    Quick compilation leaves small kernels as fast, but may split those of large rules.
    """
    if jax.default_backend() != 'cpu':
        return {}
    wanted = IN_PLACE | (QUICKLY if quickly else {})
    options: dict[str, bool | str | int] = {name: value for name, value in wanted.items() if is_known(name, value)}
    if block is not None and is_known(IN_BLOCKS, BLOCK):
        options[IN_BLOCKS] = block
    return options


@functools.cache
def is_known(name: str, value: bool | str | int) -> bool:
    """Return whether this release of XLA knows an option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
