"""Files that earlier versions wrote are loaded, and training continues from them as it did then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from golden.record_formats import END, HALF, IN_ALL_FORMATS, SUFFIXES, load, put, recordings, runs, train, values

from braintools_optim import files
from braintools_optim.saving.former import upgraded
from braintools_optim.saving.trees import encode

FORMATS = Path(__file__).parents[1] / 'golden' / 'formats'
RECORDINGS = [pytest.param(name, path, id=path.name) for name, path in recordings(FORMATS)]

pytestmark = pytest.mark.usefixtures('float32')


def encoded(tree: Any) -> tuple[dict[str, Any], Any]:
    """Return the arrays of a state_dict as dtype, shape and bytes, by path, and the rest."""
    arrays, rest = encode(tree)
    return {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in arrays.items()}, json.loads(rest)['tree']


def contains(whole: Any, part: Any) -> bool:
    """Return whether a tree has all entries of another tree; options that were added later do not count."""
    if isinstance(part, dict):
        return all(name in whole and contains(whole[name], entry) for name, entry in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part)


@pytest.mark.parametrize(('name', 'path'), RECORDINGS)
def test_run_continues_from_an_old_file(name: str, path: Path) -> None:
    recorded = files.load(FORMATS / f'{name}.weights.npz')
    run = runs()[name]()
    load(run.optimizer, path)
    put(run, recorded['half'])
    train(run, HALF, END)
    found = values(run)
    assert found.keys() == recorded['end'].keys()
    for key, expected in recorded['end'].items():
        assert (found[key].dtype, found[key].shape) == (expected.dtype, expected.shape), key
        rounding = 1e-2 if expected.dtype.itemsize == 2 else 1e-5  # another CPU may round otherwise
        wide = (x.astype(complex) for x in (found[key], expected))
        np.testing.assert_allclose(*wide, rtol=rounding, err_msg=key)


LATER = 'spike_'
"""The beginning of the names of options that the version which wrote the files did not have."""


@pytest.mark.parametrize(('name', 'path'), RECORDINGS)
def test_loaded_state_is_saved_unchanged(name: str, path: Path) -> None:
    """The optimizer was used before, so that nothing of its former state may remain."""
    run = runs()[name]()
    train(run, 0, 1)
    load(run.optimizer, path)
    (arrays, rest), (old_arrays, old_rest) = encoded(run.optimizer.state_dict()), encoded(upgraded(files.load(path)))
    assert arrays.items() >= old_arrays.items()
    assert all(f'.{LATER}' in name for name in arrays.keys() - old_arrays.keys())
    assert contains(rest, old_rest)


@pytest.mark.parametrize('name', IN_ALL_FORMATS)
def test_all_formats_hold_the_same(name: str) -> None:
    first, *others = [encoded(files.load(FORMATS / f'{name}{suffix}')) for suffix in SUFFIXES]
    assert all(other == first for other in others)


def test_new_run_reaches_the_recorded_weights() -> None:
    run = runs()['added_groups']()
    train(run, 0, HALF)
    half = files.load(FORMATS / 'added_groups.weights.npz')['half']
    jax.tree.map(lambda x, recorded: np.testing.assert_allclose(x, recorded, rtol=1e-5), values(run), half)
