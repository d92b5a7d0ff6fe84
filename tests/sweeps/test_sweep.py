"""Sweeps: members equal separate runs, in one compilation."""

from __future__ import annotations

import sys
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations

import braintools_optim as bo

STEPS = 6


def run(
    lr: Any = 0.1, seed: Any = 0, beta: Any = 0.9, clip: Any = 1.0, T_max: Any = 4, width: int = 4
) -> dict[str, Any]:
    """Train a small network, whose first weights and data depend on the seed."""
    brainstate.random.seed(seed)
    weights = {name: brainstate.ParamState(brainstate.random.randn(width)) for name in 'ab'}
    x = brainstate.random.randn(8)
    schedule = bo.CosineAnnealingLR(lr, T_max=T_max)
    optimizer = bo.Adam(schedule, betas=(beta, 0.99), grad_clip_norm=clip).register_trainable_weights(weights)

    def loss() -> Any:
        return jnp.mean((jnp.tanh(x[:, None] * weights['a'].value) @ weights['b'].value - x**2) ** 2)

    def step(_: Any) -> Any:
        before = optimizer.minimize(loss)
        schedule.step()
        return before

    losses = brainstate.transform.for_loop(step, jnp.arange(STEPS))
    return {'loss': losses, 'norm': bo.global_norm([w.value for w in weights.values()])}


separately = brainstate.transform.jit(run, static_argnames='width')
OPTIONS = {
    'lr': np.array([1e-3, 1e-2, 0.3, 0.1, 0.1]),
    'seed': [0, 1, 2, 3, 3],
    'beta': jnp.array([0.9, 0.0, 0.5, 0.9, 0.9]),
    'clip': [1.0, 1e-3, 1e9, 1.0, 1.0],
    'T_max': [4, 2, 6, 4, 4],
}


@pytest.mark.parametrize('chunk_size', [None, 2])
def test_members_equal_separate_runs(chunk_size: int | None) -> None:
    before = brainstate.random.DEFAULT.value
    result = bo.sweep(run, chunk_size=chunk_size, width=3, **OPTIONS)
    assert result['loss'].shape == (5, STEPS)
    assert result['norm'].shape == (5,)
    for i in range(5):
        alone = separately(width=3, **{name: values[i] for name, values in OPTIONS.items()})
        for name in ('loss', 'norm'):
            np.testing.assert_allclose(result[name][i], alone[name], rtol=1e-12)
    np.testing.assert_array_equal(result['loss'][3], result['loss'][4])  # the same seed
    brainstate.random.DEFAULT.value = before  # seeded by the separate runs
    bo.sweep(run, seed=[5])
    assert brainstate.random.DEFAULT.value is before


@pytest.mark.parametrize('chunk_size', [1, 2, 3, 9])
def test_chunks_hold_all_members(chunk_size: int) -> None:
    result = bo.sweep(lambda x: {'loss': 2 * x}, x=np.arange(3.0), chunk_size=chunk_size)
    assert result['loss'].tolist() == [0.0, 2.0, 4.0]


def test_one_compilation_and_one_trace() -> None:
    traced = []

    def counted(**options: Any) -> Any:
        traced.append(options)
        return run(**options)

    lr, seed = jnp.logspace(-3, -1, 5), jnp.arange(5)
    _ = lr[0], seed[0], bo.sweep(run, lr=lr, seed=seed)  # compiles what the small operations need
    jax.clear_caches()
    _ = lr[0], seed[0]
    with compilations(1):
        bo.sweep(counted, lr=lr, seed=seed)
    assert len(traced) == 1


def test_member_that_diverges_disturbs_no_other() -> None:
    def descend(lr: Any) -> dict[str, Any]:
        w = brainstate.ParamState(jnp.ones(()))
        optimizer = bo.SGD(lr=lr, on_nonfinite='skip').register_trainable_weights({'w': w})
        step = lambda _: optimizer.minimize(lambda: jnp.exp(w.value**2))  # noqa: E731
        losses = brainstate.transform.for_loop(step, jnp.arange(20))
        return {'loss': losses, 'skipped': optimizer.skipped_count}

    result = bo.sweep(descend, lr=[0.1, 1e3, 0.2])
    assert np.isinf(result['loss'][1, -1])
    assert result['skipped'].tolist() == [0, 19, 0]
    np.testing.assert_array_equal(result['loss'][[0, 2]], bo.sweep(descend, lr=[0.1, 0.2])['loss'])
    assert result.best()['lr'] == 0.2
    assert bo.sweep(
        lambda lr: {'loss': lr * jnp.array([1.0, jnp.nan])[(lr > 1).astype(int)]}, lr=[2.0, 1.0]
    ).best() == {
        'lr': 1.0,
        'loss': 1.0,
    }


def test_options_of_other_forms() -> None:
    """Weights, random keys, quantities and nested results; constants of any type stay as they are."""

    def measure(w: Any, key: Any, v: Any, kind: str, betas: Any) -> dict[str, Any]:
        assert (kind, betas) == ('a', (0.9, 0.99))
        return {'sum': w.sum(), 'noise': jax.random.normal(key), 'nested': {'twice': 2 * v}}

    keys = jax.random.split(jax.random.key(0), 2)
    result = bo.sweep(measure, w=np.eye(2), key=keys, v=jnp.arange(2.0) * u.mV, kind='a', betas=(0.9, 0.99))
    np.testing.assert_array_equal(result['sum'], [1.0, 1.0])
    np.testing.assert_array_equal(result['noise'], [jax.random.normal(key) for key in keys])
    assert result['nested']['twice'][1] == 2.0 * u.mV
    assert result.best('noise', 'max')['noise'] == result['noise'].max()
    assert 'noise' in str(result)


def test_table_and_plot() -> None:
    result = bo.sweep(lambda lr, seed: {'loss': (lr - 0.01) ** 2, 'a_long_name': seed + lr}, lr=[1e-4, 1e-2, 1.0],
                      seed=[1, 2, 3])  # fmt: skip
    assert str(result).splitlines() == [
        '      lr  seed       loss  a_long_name',
        '  0.0001     1  9.801e-05            1',
        '    0.01     2          0         2.01',
        '       1     3     0.9801            4',
    ]
    assert repr(result) == 'Sweep(3 members; lr, seed; loss, a_long_name)'
    assert list(result) == ['lr', 'seed', 'loss', 'a_long_name']
    ax = result.plot()
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.transpose([result['lr'], result['loss']]))
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ('log', 'lr', 'loss')
    assert result.plot('a_long_name', over='seed', ax=ax) is ax
    long = bo.sweep(lambda x: {'loss': x}, x=np.arange(60.0))
    assert len(str(long).splitlines()) == 52
    assert '  (10 more)' in str(long)


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    result = bo.sweep(lambda lr: {'loss': lr}, lr=[1.0])
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ImportError, match=r'plot\(\) needs matplotlib: pip install matplotlib'):
        result.plot()


@pytest.mark.parametrize(
    'build',
    [
        lambda lr: bo.Muon(lr=lr, adjust_lr_fn='match_rms_adamw'),
        lambda lr: bo.Adam(lr=lr, groups={'bias': bo.SGD(lr=lr, momentum=0.5)}),
        lambda lr: bo.Adam(lr=lr, weight_decay=0.1, grokfast=lr, groups={'bias': bo.SGD(lr=lr)}),
        lambda lr: bo.Adam(lr=lr, weight_decay=0.1, groups={'bias': bo.SGD(lr=lr, weight_decay=10 * lr)}),
    ],
    ids=['Muon', 'group', 'option of the whole', 'option of the group'],
)
def test_optimizers_with_a_second_algorithm(build: Any) -> None:
    def train(lr: Any) -> dict[str, Any]:
        w = {'weight': brainstate.ParamState(jnp.eye(3) + 1), 'bias': brainstate.ParamState(jnp.ones(3))}
        optimizer = build(lr).register_trainable_weights(w)
        for _ in range(3):
            optimizer.minimize(lambda: jnp.sum(w['weight'].value ** 2) + jnp.sum(w['bias'].value ** 4))
        return {name: state.value for name, state in w.items()}

    rates = [0.003, 0.1]
    swept = bo.sweep(train, lr=rates)
    for i, rate in enumerate(rates):
        for name, expected in train(rate).items():
            np.testing.assert_allclose(swept[name][i], expected, rtol=1e-5)


def test_option_of_the_whole_is_refused_in_a_group() -> None:
    def run(lr: Any) -> dict[str, Any]:
        w = brainstate.ParamState(jnp.ones(2))
        groups: Any = {'w': bo.SGD(lr=lr, grad_clip_norm=lr)}
        bo.Adam(lr=lr, groups=groups).register_trainable_weights({'w': w})
        return {'w': w.value}

    with pytest.raises(ValueError, match=r'Invalid grad_clip_norm=.* of the SGD of a group'):
        bo.sweep(run, lr=[0.1, 0.2])


def same(x: Any) -> dict[str, Any]:
    return {'loss': x}


MISTAKES: list[tuple[Any, type[Exception], str]] = [
    (lambda: bo.sweep(run), ValueError, 'Invalid options of lengths {}. Must be arrays or lists'),
    (lambda: bo.sweep(run, lr=[0.1], seed=[1, 2]), ValueError, "lengths {'lr': 1, 'seed': 2}. Must be arrays"),
    (lambda: bo.sweep(run, lr=[]), ValueError, "lengths {'lr': 0}"),
    (lambda: bo.sweep(lambda lr: lr, lr=[0.1]), TypeError, "Must be a dict of its measurements, such as {'loss'"),
    (lambda: bo.sweep(lambda lr: {'lr': lr}, lr=[0.1]), ValueError, "run returned ['lr'], which are names of options"),
    (lambda: bo.sweep(run, lr=[0.1], chunk_size=0), ValueError, 'Invalid chunk_size=0. Must be >= 1'),
    (lambda: bo.sweep(run, lr=[0.1, -0.1]), ValueError, 'Invalid base_lr=-0.1. Must be >= 0.'),
    (lambda: bo.sweep(run, beta=[0.5, 1.0]), ValueError, 'Invalid betas[0]=1.0. Must be in [0, 1).'),
    (lambda: bo.sweep(run, T_max=[3, 0]), ValueError, 'Invalid T_max=0. Must be > 0.'),
    (
        lambda: bo.sweep(lambda x: same(bo.LBFGS(memory_size=x)), x=[1, 2]),
        TypeError,
        'Invalid memory_size: it is traced',
    ),
    (
        lambda: bo.sweep(lambda x: same(bo.Adam(accumulate_steps=x)), x=[1, 2]),
        TypeError,
        'Invalid accumulate_steps: it is traced',
    ),
    (lambda: bo.sweep(same, x=[1.0]).best('accuracy'), KeyError, "Invalid name 'accuracy'. Must be among"),
    (lambda: bo.sweep(same, x=[1.0]).best(mode='least'), ValueError, "Invalid mode='least'"),  # type: ignore[arg-type]
    (lambda: bo.sweep(lambda x: same(x * jnp.nan), x=[1.0]).best(), ValueError, "'loss' of every member is NaN"),
    (lambda: bo.sweep(lambda x: same(jnp.eye(2)), x=[1.0]).best(), ValueError, 'its shape is [1, 2, 2]. Must be a'),
]


@pytest.mark.parametrize(('call', 'error', 'message'), MISTAKES)
def test_mistakes_are_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
