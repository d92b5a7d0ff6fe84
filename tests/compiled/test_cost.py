"""What a compiled step costs, counted rather than timed."""

from __future__ import annotations

import re
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest
from internals import IN_PLACE, QUICKLY, compiler_options, is_known
from tables.optimizers import ROWS

import braintools_optim as bo

SIDE = 256
LEAFWISE = [row.optimizer for row in ROWS if row.kind == 'leafwise']
COPIES = {  # temporary memory as a multiple of the weights
    # the step needs a norm or a row of the direction
    **dict.fromkeys((bo.SM3, bo.Adafactor, bo.Fromage, bo.Lamb, bo.Lars, bo.Novograd), 1.0),
    # products of matrices
    **dict.fromkeys((bo.Muon, bo.SOAP), 8.0),
}


def lowered_update(rule: type[bo.Optimizer], *shapes: tuple[int, ...], **options: Any) -> Any:
    weights = {f'w{i}': brainstate.ParamState(jnp.ones(shape, jnp.float32)) for i, shape in enumerate(shapes)}
    gradients = {key: jnp.ones_like(state.value) for key, state in weights.items()}
    optimizer = rule(grad_clip_norm=1.0, **options).register_trainable_weights(weights)
    return bo.jit(lambda gradients: optimizer.update(gradients)).lower(gradients)


@pytest.mark.slow
@pytest.mark.parametrize('rule', LEAFWISE, ids=lambda rule: rule.__name__)
def test_temporary_memory_of_a_step(rule: type[bo.Optimizer], float32: None) -> None:
    used = lowered_update(rule, *[(SIDE, SIDE)] * 2).compile().memory_analysis().temp_size_in_bytes
    assert used < (COPIES.get(rule, 0.0) + 0.01) * 2 * 4 * SIDE * SIDE


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA on a CPU')
def test_kernels_do_not_depend_on_the_position_of_the_leaf(float32: None) -> None:
    """XLA compiles equal kernels once; a kernel that slices its leaf out of a vector would be a different one."""
    text = lowered_update(bo.Adam, *[(8, 8)] * 12).compile().as_text()
    kernels = re.findall(r'\n%fused_computation[^\n]*-> f32\[8,8\].*?\n}', text, re.DOTALL)
    assert len(kernels) > 12
    assert not any(re.search(r' slice\(.*slice={', kernel) for kernel in kernels)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA on a CPU')
def test_compiler_options_are_known_to_xla() -> None:
    assert compiler_options() == IN_PLACE
    assert compiler_options(quickly=True) == IN_PLACE | QUICKLY
    assert not is_known('xla_cpu_no_such_option', True)
