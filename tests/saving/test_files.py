"""Files of every format hold the tree bit for bit, and a save happens as a whole or not at all."""

from __future__ import annotations

import io
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import braintools_optim as bo
from braintools_optim import files
from braintools_optim.saving import trees

SUFFIXES = ['.npz', '.safetensors', '.msgpack']
formats = pytest.mark.parametrize('suffix', SUFFIXES)
TREE: dict[str, Any] = {
    'a/b': {'~x': np.arange(6, dtype=ml_dtypes.bfloat16).reshape(3, 2).T, '~1x': np.zeros((0, 3), complex)},
    'a': {'b': {'~0x': np.array(1.5, ml_dtypes.float8_e4m3fn)}, '': np.array([-(2**63), 2**63 - 1])},
    'list': [1, 2.5, None, True, float('inf'), 0.1 + 0.2, 2**70, 'é\n', [], {'x': np.array(np.nan, np.float32)}],
    'complex': np.array([1 + 2j, -0.0j], np.complex64),
    'flags': np.array([True, False]),
    'file': np.float16(2),
    'metadata': {},
}


def identical(a: Any, b: Any) -> bool:
    if isinstance(a, (np.ndarray, np.generic)):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and a == b


@formats
def test_tree_round_trip(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f'tree{suffix}'
    for tree in ({}, {'x': 1}, TREE):  # each overwrites the one before
        files.save(path, tree)
        assert identical(tree, files.load(path))
    files.load(path)['a'][''][0] = 0  # loaded arrays are writable
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    (tmp_path / 'plain').touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / 'plain').stat().st_mode)


@formats
def test_optimizer_round_trip(suffix: str, tmp_path: Path) -> None:
    def build() -> bo.Optimizer:
        weights = {
            'half': brainstate.ParamState(jnp.ones(3, jnp.bfloat16)),
            'z': brainstate.ParamState({'w': jnp.ones((2, 2)) + 1j, 'v': jnp.ones(())}),
        }
        tx = bo.OptaxOptimizer(bo.to_optax(bo.Adam(0.1)), lr=bo.StepLR(1.0, 1, 0.3))
        tx.register_trainable_weights({'half': weights['half']})
        tx.add_param_group({'z': weights['z']}, weight_decay=0.1)
        return tx

    opt, again = build(), build()
    opt.update(jax.tree.map(jnp.ones_like, opt.param_states.to_pytree_value()))
    opt.lr.step()
    saved = opt.state_dict()
    opt.save(tmp_path / f'opt{suffix}')
    assert identical(saved, files.load(tmp_path / f'opt{suffix}'))
    assert again.load(tmp_path / f'opt{suffix}') == []
    assert identical(saved, again.state_dict())


@formats
def test_permissions_are_kept(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f'x{suffix}'
    files.save(path, {'x': 1})
    for mode in (0o600, 0o664):
        path.chmod(mode)
        files.save(path, {'x': 2})
        assert stat.S_IMODE(path.stat().st_mode) == mode


@formats
def test_other_byte_orders_are_written_as_native(suffix: str, tmp_path: Path) -> None:
    for dtype in ('>f4', '>f8', '>i4', '>c8', '<f2', '>f2'):
        x = np.array([[1.5, -2.0], [3.0, 4.0]]).astype(dtype)
        files.save(tmp_path / f'x{suffix}', {'x': x})
        found = files.load(tmp_path / f'x{suffix}')['x']
        np.testing.assert_array_equal(found, x)
        assert found.dtype == x.dtype.newbyteorder('=')


@formats
def test_names_that_formats_reserve(suffix: str, tmp_path: Path) -> None:
    tree = {'a\0b': np.ones(2), '__metadata__': np.zeros(3), '~2': np.ones(1), 'a': {'\0': np.zeros(1)}, '~': {'~': 1}}
    files.save(tmp_path / f'x{suffix}', tree)
    assert identical(tree, files.load(tmp_path / f'x{suffix}'))


def test_symlink_is_kept(tmp_path: Path) -> None:
    (tmp_path / 'runs').mkdir()
    link = tmp_path / 'last.npz'
    link.symlink_to('runs/checkpoint')
    files.save(link, {'x': 1})
    assert link.is_symlink()
    assert files.load(link) == {'x': 1}
    assert os.listdir(tmp_path / 'runs') == ['checkpoint']


def foreign(path: Path) -> dict[str, bytes]:
    """Return contents that are no checkpoint, by what they are."""
    good = path.with_name(f'good{path.suffix}')
    files.save(good, TREE)
    whole = good.read_bytes()
    np.savez(path.with_name('other.npz'), x=np.zeros(3))
    np.save(path.with_name('other.npy'), np.zeros(3))
    np.save(path.with_name('objects.npy'), np.array([print]), allow_pickle=True)
    save = pytest.importorskip('safetensors.numpy').save
    found = {f'truncated {n}': whole[:n] for n in (1, 7, 100, len(whole) // 2, len(whole) - 1)}
    return found | {
        'empty': b'',
        'text': b'epoch: 3\n' * 30,
        'pickle': pickle.dumps({'format': 1}),
        'zip archive': path.with_name('other.npz').read_bytes(),
        'npy': path.with_name('other.npy').read_bytes(),
        'npy of objects': path.with_name('objects.npy').read_bytes(),
        'safetensors': save({'x': np.zeros(3)}),
        'noise': np.random.default_rng(0).bytes(5000),
        'msgpack': pytest.importorskip('msgpack').packb({'arrays': [], '~metadata': 3}),
        'msgpack of a list': pytest.importorskip('msgpack').packb([1, 2]),
    }


@formats
def test_damaged_and_foreign_files_are_refused(suffix: str, tmp_path: Path) -> None:
    opt = bo.Adam(0.1).register_trainable_weights({'w': brainstate.ParamState(jnp.ones(2))})
    before, path = opt.state_dict(), tmp_path / f'it{suffix}'
    for content in foreign(path).values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf'it\{suffix} cannot be read: .*Must be a whole \{suffix} file'):
            opt.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        opt.load(path)
    path.mkdir()
    with pytest.raises(ValueError, match='it is a directory'):
        opt.load(path)
    files.save(tmp_path / f'tree{suffix}', {'x': 1})
    with pytest.raises(ValueError, match='Invalid format=None'):
        opt.load(tmp_path / f'tree{suffix}')
    assert identical(before, opt.state_dict())


@formats
def test_flipped_bits_are_noticed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f'x{suffix}'
    tree = {
        'x': np.full(1000, 7, np.uint8),
        'half': np.full(50, 1.5, ml_dtypes.bfloat16),
        'lr': 0.125,
        'empty': np.ones((0, 2)),
    }
    files.save(path, tree)
    whole = path.read_bytes()
    half = whole.index(np.full(50, 1.5, ml_dtypes.bfloat16).tobytes())
    for at in (whole.index(b'\7' * 1000) + 500, half + 10, half + 11, whole.index(b'0.125') + 2):
        content = bytearray(whole)
        content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'cannot be read: .*Must be a whole'):
            files.load(path)


@formats
def test_flipped_bits_anywhere_never_change_the_tree(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f'x{suffix}'
    tree = {'x': np.arange(6, dtype=np.int16).reshape(2, 3), 'b': 3, ('a', 1): np.zeros((0, 2))}
    files.save(path, tree)
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        content = bytearray(whole)
        content[at] ^= 1 << (at % 8)
        path.write_bytes(content)
        try:
            found = files.load(path)
        except ValueError:
            continue
        assert identical(tree, found)  # the bit was one that the format does not use


def test_npz_takes_no_more_memory_than_the_file_is_long(tmp_path: Path) -> None:
    path = tmp_path / 'x.npz'
    np.savez_compressed(path, x=np.zeros(10**7, np.uint8))
    with pytest.raises(ValueError, match='compressed entries'):
        files.load(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '<f8', 'fortran_order': False, 'shape': (50 * 10**12,)})
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x.npy', header.getvalue())
    with pytest.raises(ValueError, match=r'x.npy does not hold the float64\[50000000000000\]'):
        files.load(path)


@formats
def test_tree_of_a_later_version_is_refused_as_such(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trees, 'VERSION', 99)
        files.save(tmp_path / f'x{suffix}', {})
    with pytest.raises(ValueError, match='a later version of braintools_optim wrote it'):
        files.load(tmp_path / f'x{suffix}')


@formats
def test_failed_save_changes_nothing(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f'x{suffix}'
    files.save(path, {'x': 1})
    before = path.read_bytes()
    for wrong, match in [
        ({'x': {'y': print}}, 'Invalid x/y of type builtin_function'),
        ({'x': {1.5: 2}}, r'Invalid key 1\.5 of x. Must be a string'),
        ({'x': {('a', None): 2}}, r"Invalid key \('a', None\) of x"),
        ({'x': np.array([print])}, 'Invalid x of dtype object'),
        ({'x': np.array(['a'])}, 'Invalid x of dtype <U1'),
        ({'x': np.zeros(2, [('a', 'f4')])}, 'Invalid x of dtype'),
    ]:
        with pytest.raises(TypeError, match=match):
            files.save(path, wrong)

    def full(*_: Any) -> None:
        raise OSError('No space left on device')

    for name in ('fsync', 'replace'):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match='No space left'):
                files.save(path, TREE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_unknown_formats_and_missing_packages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('x', 'x.pt', 'x.npz.gz'):
        with pytest.raises(ValueError, match=r'Must end in \.npz, \.safetensors, \.msgpack'):
            files.save(tmp_path / name, {})
    for suffix in SUFFIXES[1:]:
        files.save(tmp_path / f'x{suffix}', {})
        for package in (suffix[1:], f'{suffix[1:]}.numpy'):
            monkeypatch.setitem(sys.modules, package, None)
        for act in (lambda path: files.save(path, {}), files.load):
            with pytest.raises(ModuleNotFoundError, match=f'needs the package {suffix[1:]}: pip install {suffix[1:]}'):
                act(tmp_path / f'x{suffix}')
    assert len(os.listdir(tmp_path)) == 2


KILLED = """
import os, random, signal, sys, time, warnings
import numpy as np
from braintools_optim import files

warnings.filterwarnings('ignore', message='.*fork')  # neither process uses jax
path, random = sys.argv[1], random.Random(0)


def tree(n):
    return {'n': n, 'arrays': {str(i): np.full(20_000, n, np.int32) for i in range(5)}}


files.save(path, tree(0))
last, partial, kills = 0, 0, 0
while kills < 50 or (kills < 1000 and (last <= 20 or partial <= 5)):  # a busy machine needs more
    kills += 1
    writer = os.fork()
    if writer == 0:
        n = last
        while True:
            n += 1
            files.save(path, tree(n))
    time.sleep(random.uniform(0.0, 0.04))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    found = files.load(path)
    assert found['n'] >= last, (found['n'], last)
    assert all((x == found['n']).all() for x in found['arrays'].values())
    partial += len(os.listdir(os.path.dirname(path))) > 1
    last = found['n']
    for name in os.listdir(os.path.dirname(path)):
        if name.endswith('.partial'):
            os.unlink(os.path.join(os.path.dirname(path), name))
print(last, partial)
"""


@formats
def test_file_is_whole_after_a_killed_save(suffix: str, tmp_path: Path) -> None:
    command = [sys.executable, '-c', KILLED, str(tmp_path / f'x{suffix}')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saved, in_the_middle = map(int, done.stdout.split())
    assert saved > 20  # otherwise no save was interrupted
    assert in_the_middle > 5
