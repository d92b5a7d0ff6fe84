"""Trees of dicts, lists, numbers and arrays, as plain NumPy arrays by name and one JSON string."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import brainstate
import brainunit
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from braintools_optim.options.types import Tree
from braintools_optim.saving.whole import whole

__all__ = ['Arrays', 'decode', 'encode', 'is_key', 'without_key']

KIND = 'braintools_optim tree '
VERSION = 2
MARK = '~'
"""The key of a JSON object that stands for something other than a dict with strings as keys."""
UNIT = ('scale', 'factor', 'name', 'dispname', 'is_fullname')
"""The attributes that describe a unit, besides its dimension and its parts."""
DIMS = ('m', 'kg', 's', 'A', 'K', 'mol', 'cd')
"""The base dimensions, in the order of their exponents."""
Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]
Json = Any
"""A value that the module json reads and writes."""
Key = str | int | tuple['Key', ...]
Path = tuple[str, ...]


def encode(tree: Mapping[Any, Tree]) -> tuple[Arrays, str]:
    """Return the arrays of a tree by path, such as ``'opt_state/exp_avg.w'``, and the rest as JSON."""
    encoder = Encoder()
    content = encoder.node(tree, ())
    found = {
        'kind': f'{KIND}{VERSION}',
        'dtypes': encoder.dtypes,
        'checksums': {name: checksum(x) for name, x in encoder.arrays.items()},
        'tree': content,
    }
    return encoder.arrays, json.dumps({**found, 'checksum': text_checksum(found)})


def decode(arrays: Arrays, metadata: str) -> dict[Any, Tree]:
    """Invert :func:`encode`; raise ``ValueError`` if the arrays are not those that were encoded."""
    found = json.loads(metadata)
    version = version_of(found)
    dtypes, content = found['dtypes'], found['tree']
    if dtypes.keys() != arrays.keys():
        raise ValueError(f'the arrays are not those listed: {sorted(dtypes.keys() ^ arrays.keys())}')
    if version > 1:
        damaged = [name for name, x in arrays.items() if checksum(x) != found['checksums'].get(name)]
        if damaged or found.pop('checksum') != text_checksum(found):
            raise ValueError(f'the content is damaged: {", ".join(damaged) or "the metadata"} has another checksum')
    restored = {name: from_bits(x, dtypes[name]) for name, x in arrays.items()}
    tree: dict[Any, Tree] = Decoder(restored, marked=version > 1).node(content, ())
    return tree


def version_of(found: Json) -> int:
    """Return the version of the encoding; raise if there is none, or if it is a later one."""
    kind = found.get('kind') if isinstance(found, dict) else None
    number = kind.removeprefix(KIND) if isinstance(kind, str) else ''
    version = int(number) if number.isdecimal() else 0
    if version < 1:
        raise ValueError('it holds no tree')
    if version > VERSION:
        raise ValueError(f'a later version of braintools_optim wrote it, in encoding {version} instead of {VERSION}')
    return version


class Encoder:
    """The arrays of a tree, collected while the tree is turned into JSON."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self.dtypes: dict[str, str] = {}

    def node(self, node: Tree, path: Path) -> Json:
        """Return the JSON of a node. An array becomes None there, and is found by its path."""
        if isinstance(node, brainstate.State):
            return self.node(node.value, path)
        if isinstance(node, brainunit.Quantity):
            return {MARK: 'quantity', 'unit': unit_to_json(node.unit), 'mantissa': self.node(node.mantissa, path)}
        if is_key(node):
            data = self.node(jax.random.key_data(node), path)
            return {MARK: 'key', 'impl': str(jax.random.key_impl(node)), 'data': data}
        if isinstance(node, (np.ndarray, np.generic, jax.Array)):
            return self.array(whole(node, joined(path)), joined(path))
        if isinstance(node, Mapping):
            return self.mapping(node, path)
        if isinstance(node, (list, tuple)):
            return [self.node(value, (*path, str(i))) for i, value in enumerate(node)]
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TypeError(
            f'Invalid {joined(path) or "tree"} of type {type(node).__name__}. Must be a dict, a list, a string, a '
            f'number, an array or a quantity.'
        )

    def array(self, x: Array, name: str) -> None:
        """Collect an array."""
        self.arrays[name], self.dtypes[name] = to_bits(x, name), x.dtype.name

    def mapping(self, node: Mapping[Any, Tree], path: Path) -> Json:
        """Return the JSON of a dict, as a list of pairs if JSON cannot have its keys."""
        if all(isinstance(key, str) for key in node) and MARK not in node:
            return {key: self.node(value, (*path, key)) for key, value in node.items()}
        if wrong := [key for key in node if not is_valid_key(key)]:
            raise TypeError(
                f'Invalid key {wrong[0]!r} of {joined(path) or "tree"}. '
                f'Must be a string, an integer, or a tuple of strings and integers.'
            )
        return {MARK: 'dict', 'items': [[key, self.node(value, (*path, repr(key)))] for key, value in node.items()]}


class Decoder:
    """The arrays by name, which are put back into the tree."""

    def __init__(self, arrays: Arrays, marked: bool):
        self.arrays = arrays
        self.marked = marked

    def node(self, node: Json, path: Path) -> Tree:
        """Return the node that JSON stands for."""
        if node is None:
            return self.arrays.get(joined(path))
        if isinstance(node, list):
            return [self.node(value, (*path, str(i))) for i, value in enumerate(node)]
        if isinstance(node, dict):
            if self.marked and MARK in node:
                return self.special(node, path)
            return {key: self.node(value, (*path, key)) for key, value in node.items()}
        return node

    def special(self, node: dict[str, Json], path: Path) -> Tree:
        """Return the node that a marked JSON object stands for."""
        if node[MARK] == 'quantity':
            return brainunit.Quantity(self.node(node['mantissa'], path), unit=unit_from_json(node['unit']))
        if node[MARK] == 'key':
            return jax.random.wrap_key_data(jnp.asarray(self.node(node['data'], path)), impl=node['impl'])
        if node[MARK] == 'dict':
            items = [(as_key(key), value) for key, value in node['items']]
            return {key: self.node(value, (*path, repr(key))) for key, value in items}
        raise ValueError(f'it holds a {node[MARK]!r}, which this version does not know')


def joined(path: Path) -> str:
    """Return a path as a name that no other path has: as in JSON pointers, with escapes for reserved characters."""
    name = '/'.join(key.replace('~', '~0').replace('/', '~1').replace('\0', '~2') for key in path)
    return '~3' if name == '__metadata__' else name  # safetensors reserves this name


def is_key(x: Tree) -> bool:
    """Return whether ``x`` is an array of typed random keys, such as a gradient transformation may keep."""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def without_key(x: Tree) -> Tree:
    """Return random keys as integers, anything else unchanged."""
    return jax.random.key_data(x) if is_key(x) else x


def is_valid_key(key: object) -> bool:
    """Return whether a file can hold a key of a dict."""
    if isinstance(key, tuple):
        return all(map(is_valid_key, key))
    return isinstance(key, str) or type(key) is int


def as_key(key: Json) -> Key:
    """Return a key of a dict, whose tuples JSON has made lists."""
    return tuple(map(as_key, key)) if isinstance(key, list) else key


def unit_to_json(unit: brainunit.Unit) -> Json:
    """Return a unit as numbers and names."""
    parts = getattr(unit, '_display_parts', None)
    known = {name: getattr(unit, name) for name in UNIT}
    return {
        **known,
        'dims': [float(unit.dim.get_dimension(name)) for name in DIMS],
        'parts': parts and [list(part) for part in parts],
    }


def unit_from_json(found: Json) -> brainunit.Unit:
    """Invert :func:`unit_to_json`."""
    dim = brainunit.get_or_create_dimension(found['dims'])
    parts = found['parts'] and [tuple(part) for part in found['parts']]
    return brainunit.Unit(dim, **{name: found[name] for name in UNIT}, display_parts=parts)


def to_bits(x: Array, name: str) -> Array:
    """Return an array in native byte order, as bytes if some format lacks its dtype (bfloat16, complex)."""
    if x.dtype.kind not in 'biufcV' or x.dtype.fields or x.dtype.name.startswith('void'):
        raise TypeError(f'Invalid {name} of dtype {x.dtype}. Must be numbers.')
    x = np.asarray(x, x.dtype.newbyteorder('='), order='C')
    if x.dtype.kind in 'biuf' and x.dtype.isbuiltin == 1 and x.dtype.itemsize <= 8:
        return x
    return x[..., None].view(np.uint8)


def from_bits(x: Array, dtype: str) -> Array:
    """Invert :func:`to_bits`."""
    if x.dtype.name == dtype:
        return x
    module = np if hasattr(np, dtype) else ml_dtypes
    return x.view(np.dtype(getattr(module, dtype, 'no dtype')))[..., 0]


def checksum(x: Array) -> int:
    """Return a number that depends on the dtype, shape and content of an array."""
    content = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return zlib.crc32(content.data, zlib.crc32(f'{x.dtype.str}{x.shape}'.encode()))


def text_checksum(found: Json) -> int:
    """Return a number that depends on all of the JSON."""
    return zlib.crc32(json.dumps(found).encode())
