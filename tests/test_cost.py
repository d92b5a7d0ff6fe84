"""What a compiled step costs, counted rather than timed."""

from __future__ import annotations

import re
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table import thinned

import braintools_optim as bo
from braintools_optim import rules
from braintools_optim.buffers import IN_PLACE, QUICKLY, compiler_options, is_known
from braintools_optim.rule import TreeRule

SIDE = 256
RULES = [getattr(rules, name) for name in rules.__all__]
LEAFWISE = [rule for rule in RULES if issubclass(rule, bo.Optimizer) and not issubclass(rule, TreeRule)]
COPIES = {  # temporary memory, in weights
    # a norm, a row or a unit must be seen before a step along the direction
    **dict.fromkeys((bo.SM3, bo.Adafactor, bo.Fromage, bo.Lamb, bo.Lars, bo.Novograd), 1.0),
    # products of matrices
    **dict.fromkeys((bo.Muon, bo.SOAP), 8.0),
}


def problem(rule: type[bo.Optimizer], *shapes: tuple[int, ...], **options: Any) -> Any:
    weights = {f'w{i}': brainstate.ParamState(jnp.ones(shape, jnp.float32)) for i, shape in enumerate(shapes)}
    gradients = {key: jnp.ones_like(state.value) for key, state in weights.items()}
    optimizer = rule(grad_clip_norm=1.0, **options).register_trainable_weights(weights)
    return bo.jit(lambda gradients: optimizer.update(gradients)).lower(gradients)


@pytest.mark.slow
@pytest.mark.parametrize('rule', LEAFWISE, ids=lambda rule: rule.__name__)
def test_temporary_memory(rule: type[bo.Optimizer], float32: None) -> None:
    used = problem(rule, *[(SIDE, SIDE)] * 2).compile().memory_analysis().temp_size_in_bytes
    assert used < (COPIES.get(rule, 0.0) + 0.01) * 2 * 4 * SIDE * SIDE


class Counted(bo.SGD):
    traced = 0

    def direction(self, *arguments: Any) -> Any:
        Counted.traced += 1
        return super().direction(*arguments)


def test_a_rule_is_traced_once_for_each_shape() -> None:
    Counted.traced = 0
    problem(Counted, *[(2, 2), (3,)] * 10, lr=0.1, momentum=0.9)
    assert Counted.traced == 2


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA on a CPU')
def test_no_kernel_knows_its_leaf(float32: None) -> None:
    """Equal kernels are compiled once, and a leaf's place in a vector would make each another."""
    text = problem(bo.Adam, *[(8, 8)] * 12).compile().as_text()
    kernels = re.findall(r'\n%fused_computation[^\n]*-> f32\[8,8\].*?\n}', text, re.DOTALL)
    assert len(kernels) > 12
    assert not any(re.search(r' slice\(.*slice={', kernel) for kernel in kernels)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA on a CPU')
def test_options_of_the_compiler_are_those_that_it_knows() -> None:
    assert compiler_options() == IN_PLACE
    assert compiler_options(quickly=True) == IN_PLACE | QUICKLY
    assert not is_known('xla_cpu_no_such_option', True)


@thinned(LEAFWISE, 'rule', 6)
def test_many_leaves_are_updated_as_few_are(rule: type[bo.Optimizer]) -> None:
    """Among many, numbers reach the leaves another way, and XLA compiles in another."""
    few = {'a': jnp.array([0.5, -1.5]), 'b': jnp.arange(6.0).reshape(2, 3) - 2.5, 'c': jnp.array([2.0])}
    many = {f'{name}{i}': w for i in range(4) for name, w in few.items()}
    paths = []
    for start in (few, many):
        weights = {name: brainstate.ParamState(w) for name, w in start.items()}
        options = {} if rule is bo.Fromage else {'weight_decay': 0.01}
        optimizer = rule(grad_clip_value=0.5, **options).register_trainable_weights(weights)
        for step in range(6):
            optimizer.update({name: jnp.cos(w.value + step) for name, w in weights.items()})
        paths.append({name: w.value for name, w in weights.items()})
    for name, w in paths[1].items():
        np.testing.assert_allclose(w, paths[0][name[0]], rtol=1e-12, atol=1e-14)
