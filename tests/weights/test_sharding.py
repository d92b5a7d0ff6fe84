"""Weights that lie on several devices."""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path

import pytest
from helpers import run_script
from tables.optimizers import OPTIMIZERS

FLAGS = '--xla_force_host_platform_device_count=8'
HERE = Path(__file__).parent
BY_NORMS = {'Lamb', 'Lars', 'Novograd', 'Fromage', 'Prodigy', 'DAdaptAdamW', 'DoG', 'PolyakSGD'}
BY_ROWS = {'Adafactor', 'SM3'}
BY_MATRICES = {'Muon', 'SOAP', 'LBFGS', 'SAM'}
BY_ENTRIES = {kind.__name__ for kind in OPTIMIZERS} - BY_NORMS - BY_ROWS - BY_MATRICES
FEW = {'Adam', 'Lamb', 'Adafactor'}


@pytest.mark.parametrize('which', ['few', pytest.param('all', marks=pytest.mark.slow)])
def test_the_optimizer_state_lies_where_the_weights_lie(which: str) -> None:
    """On a 4 x 2 mesh, and training goes as on one device."""
    names = run_script(HERE / 'sharded.py', which, XLA_FLAGS=FLAGS)
    assert len(names) == (len(OPTIMIZERS) if which == 'all' else 4)


@pytest.mark.parametrize('which', ['few', pytest.param('all', marks=pytest.mark.slow)])
def test_slots_that_are_split_further_take_less_memory(which: str) -> None:
    """On a 4 x 2 mesh, over the axis of 4; and norms over shards inside ``shard_map``."""
    lines = run_script(HERE / 'zero.py', which, XLA_FLAGS=FLAGS)
    assert len(lines) == 1 + (len(OPTIMIZERS) - 2 if which == 'all' else 4)


def test_updates_compiled_from_shapes_are_those_of_registered_weights() -> None:
    """The tables at scale are of such updates."""
    assert len(run_script(HERE / 'by_shapes.py', XLA_FLAGS=FLAGS)) == 4


@functools.cache
def sizes_of_collectives(slow: bool) -> dict[str, list[list[tuple[str, int]]]]:
    """Return, by optimizer, without and with clipping, the collectives and the greatest dimension of their results."""
    names = (BY_ENTRIES | BY_NORMS | BY_ROWS) - FEW if slow else FEW
    (line,) = run_script(HERE / 'collectives.py', *names, XLA_FLAGS=FLAGS)

    def sized(collective: str) -> tuple[str, int]:
        name, result = collective.split(' ', 1)
        shapes = [[int(n) for n in shape.split(',') if n] for shape in re.findall(r'\w\[([\d,]*)\]', result)]
        return name, max(math.prod(shape) for shape in shapes)

    return {name: [list(map(sized, found)) for found in both] for name, both in json.loads(line).items()}


def marked(names: set[str]) -> list[object]:
    return [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in sorted(names)]


@pytest.mark.parametrize('name', marked(BY_ENTRIES))
def test_the_step_of_an_elementwise_rule_communicates_only_norms(name: str) -> None:
    plain, clipping = sizes_of_collectives(name not in FEW)[name]
    assert plain == []
    assert set(clipping) == {('all-reduce', 1)}


@pytest.mark.parametrize('name', marked(BY_NORMS | BY_ROWS))
def test_the_step_of_a_rule_of_norms_communicates_only_sums(name: str) -> None:
    """The weight has 32 entries in shards of 4, so that the shard of a row or a column has 2."""
    for found in sizes_of_collectives(name not in FEW)[name]:
        assert {kind for kind, _ in found} == {'all-reduce'}
        assert max(size for _, size in found) <= (2 if name in BY_ROWS else 1)
