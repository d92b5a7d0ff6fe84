"""This library in the place of braintools.optim, and its optimizers in libraries that check braintools' classes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brainstate
import jax.numpy as jnp
import optax
import pytest

import braintools_optim as bo

ROOT = Path(__file__).parents[1]


def test_every_optimizer_counts_as_an_optax_optimizer() -> None:
    for cls in (bo.Adam, bo.LBFGS, bo.SAM, bo.OptaxOptimizer, bo.SOFO):
        assert issubclass(cls, bo.OptaxOptimizer)
        assert issubclass(cls, bo.Optimizer)
    assert isinstance(bo.Adam(), bo.OptaxOptimizer)
    assert not isinstance(bo.Adam(), bo.Lookahead)
    for cls in (bo.LRScheduler, dict, bo.Rule, bo.ScipyOptimizer, bo.NevergradOptimizer):
        assert not issubclass(cls, bo.OptaxOptimizer)
    for cls in (bo.ScipyOptimizer, bo.NevergradOptimizer):
        assert issubclass(cls, bo.Optimizer)

    class Mine(bo.OptaxOptimizer):
        pass

    assert issubclass(Mine, bo.OptaxOptimizer)
    assert not isinstance(bo.Adam(), Mine)


def test_optimizers_that_search_within_bounds_are_refused_as_base_optimizers() -> None:
    search = bo.ScipyOptimizer(lambda x: x**2, [(-1.0, 1.0)])
    with pytest.raises(TypeError, match='Invalid base_optimizer='):
        bo.SAM(search)
    for call in (lambda: search.register_trainable_weights({}), lambda: search.update({})):
        with pytest.raises(NotImplementedError, match=r'Call minimize\(\)'):
            call()


def test_names_of_braintools_are_complete() -> None:
    braintools = pytest.importorskip('braintools')
    assert set(braintools.optim.__all__) <= set(bo.__all__)


@pytest.fixture
def original() -> Iterator[Any]:
    braintools = pytest.importorskip('braintools')
    module = braintools.optim
    yield module
    bo.restore_braintools()
    assert sys.modules['braintools.optim'] is braintools.optim is module


def fit(optimizer: Any) -> list[float]:
    """Fit as brainmass does, which checks the class of the optimizer and trains in a compiled function."""
    import braintools

    if not isinstance(optimizer, braintools.optim.OptaxOptimizer):
        raise TypeError(f'requires a braintools.optim optimizer; got {type(optimizer).__name__}')
    w = brainstate.ParamState(jnp.array([2.0, -1.0]))
    weights = {'w': w}
    optimizer.register_trainable_weights(weights)

    @brainstate.transform.jit
    def train() -> Any:
        loss = lambda: (jnp.sum(w.value**2), w.value)  # noqa: E731
        grads, value, _ = brainstate.transform.grad(loss, weights, has_aux=True, return_value=True)()
        optimizer.step(grads)
        return value

    return [float(train()) for _ in range(20)]


def test_registered_optimizers_pass_the_checks_of_other_libraries(original: Any) -> None:
    bo.register_with_braintools()
    bo.register_with_braintools()
    losses = fit(bo.Adam(0.1))
    assert losses[-1] < losses[0]
    for cls in (bo.Adam, bo.SAM, bo.SOFO, bo.OptaxOptimizer):
        assert issubclass(cls, original.OptaxOptimizer)
        assert issubclass(cls, original.Optimizer)
    for cls in (bo.ScipyOptimizer, bo.NevergradOptimizer):
        assert issubclass(cls, original.Optimizer)
        assert not issubclass(cls, original.OptaxOptimizer)
    assert isinstance(bo.Adam().step_count, original.OptimState)
    assert not issubclass(bo.Adam, original.Adam)
    assert not isinstance(optax.adam(0.1), original.OptaxOptimizer)
    assert isinstance(original.Adam(), original.OptaxOptimizer)


def test_library_stands_in_the_place_of_braintools_optim(original: Any) -> None:
    import braintools

    for _ in range(2):
        bo.replace_braintools()
        import braintools.optim as imported
        from braintools.optim import Adam, LRScheduler

        assert imported is braintools.optim is sys.modules['braintools.optim'] is bo
        assert (Adam, LRScheduler) == (bo.Adam, bo.LRScheduler)
        assert isinstance(bo.Adam(), original.OptaxOptimizer)  # a name that was imported before
    assert fit(braintools.optim.Adam(0.1))[-1] < 5.0
    bo.restore_braintools()
    bo.restore_braintools()
    from braintools.optim import Adam as BraintoolsAdam

    assert BraintoolsAdam is original.Adam is not bo.Adam


def test_braintools_is_imported_only_if_asked_for() -> None:
    script = """
import sys
sys.modules['braintools'] = None  # as if it were not installed
import braintools_optim as bo
for function in (bo.register_with_braintools, bo.replace_braintools):
    try:
        function()
    except ModuleNotFoundError as error:
        print(error)
bo.restore_braintools()
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=False)
    message = 'braintools is not installed. Install it with: pip install braintools\n'
    assert (done.stdout, done.returncode) == (2 * message, 0), done.stderr


def test_optimizer_of_braintools_reads_a_schedule_as_a_number(original: Any) -> None:
    """braintools' optimizers do not follow schedules of this library: a schedule stands for its present rate."""
    bo.register_with_braintools()
    assert not isinstance(bo.StepLR(), original.LRScheduler)
    w = brainstate.ParamState(jnp.ones(()))
    optimizer = original.SGD(lr=bo.StepLR(0.25))
    optimizer.register_trainable_weights({'w': w})
    optimizer.step({'w': jnp.ones(())})
    assert float(w.value) == 0.75
