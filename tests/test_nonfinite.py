"""Bad gradients: what an update does that finds NaN or inf, and what is seen of an update."""

from __future__ import annotations

import warnings
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations

import braintools_optim as bo
from braintools_optim import rules

START = {'w': np.array([[1.0, -2.0], [0.5, 3.0]]), 'b': np.array([0.5, -1.0])}
SIMPLE = sorted(set(rules.__all__) - {'NAdam', 'Lookahead', 'LBFGS', 'SAM', 'PolyakSGD', 'Sophia'})


def build(name: str = 'Adam', **options: Any) -> tuple[bo.Optimizer, dict[str, brainstate.ParamState]]:
    opt = getattr(rules, name)(**{'lr': 0.01, **options})
    states = {key: brainstate.ParamState(jnp.asarray(w)) for key, w in START.items()}
    return opt.register_trainable_weights(states), states


def slopes(t: int, bad: float | None = None) -> dict[str, jax.Array]:
    rng = np.random.default_rng(t)
    g = {key: rng.normal(size=w.shape) for key, w in START.items()}
    if bad is not None:
        g['w'][t % 2, 0] = bad
    return {key: jnp.asarray(x) for key, x in g.items()}


def everything(opt: bo.Optimizer, states: Any) -> list[np.ndarray]:
    found: Any = brainstate.graph.states(opt)
    memory = {slot: x for slot, x in opt.opt_state.value.items() if slot != 'skipped'}
    others = [state.value for path, state in found.items() if path != ('opt_state',)]
    return [np.array(x) for x in jax.tree.leaves([memory, others, [state.value for state in states.values()]])]


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name in ('Adam', 'SGD') else pytest.mark.slow) for name in SIMPLE]
)
def test_ten_thousand_steps_with_bad_gradients_are_those_of_the_good_ones(name: str) -> None:
    """One in three is NaN or inf somewhere; under a schedule that follows the updates, too."""
    schedule = optax.linear_schedule(0.01, 0.001, 5000)
    (opt, states), (clean, others) = (
        build(name, lr=schedule, on_nonfinite='skip', max_consecutive_skips=10_000, grad_clip_norm=1.0)
        for _ in range(2)
    )
    rng = np.random.default_rng(0)
    good = {key: rng.normal(size=(10_000, *w.shape)) for key, w in START.items()}
    bad = rng.random(10_000) < 1 / 3
    mixed = {key: g.copy() for key, g in good.items()}
    mixed['w'][bad, 0, 1] = rng.choice([np.nan, np.inf, -np.inf], bad.sum())
    mixed['b'][bad & (rng.random(10_000) < 0.5)] = np.nan

    def update(mixed: Any, good: Any, bad: Any) -> None:
        opt.update(mixed)
        brainstate.transform.cond(bad, lambda: None, lambda: clean.update(good))

    arrays = jax.tree.map(jnp.asarray, (mixed, good, bad))
    brainstate.transform.for_loop(update, *arrays)
    assert int(opt.skipped_count) == bad.sum()
    kept = jax.tree.leaves([opt.opt_state.value, [state.value for state in states.values()]])
    assert all(jnp.isfinite(x).all() for x in kept)
    for one, other in zip(everything(opt, states), everything(clean, others), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize('how', ['eager', 'jit'])
@pytest.mark.parametrize(
    'options', [{}, {'loss_scale': 8.0}, {'groups': {'b': {'betas': (0.5, 0.9)}}}, {'metrics': True}]
)
def test_a_skipped_update_leaves_everything_to_the_bit_and_compiles_nothing(how: str, options: Any) -> None:
    opt, states = build(on_nonfinite='skip', grad_clip_norm=1.0, **options)
    update = brainstate.transform.jit(lambda g: opt.update(g)) if how == 'jit' else opt.update
    update(slopes(0))
    before, state = everything(opt, states), opt.state_dict()
    with compilations(0):
        for bad in (np.nan, np.inf):
            update(slopes(1, bad))
    if 'metrics' not in options:
        assert_same(before, everything(opt, states))
    assert int(opt.skipped_count) == 2
    assert opt.state_dict()['step_count'] == state['step_count'] == 1
    update(slopes(2))
    assert int(opt.step_count.value) == 2


def test_bad_entries_are_zeroed_under_clipping_groups_and_loss_scale() -> None:
    for options in ({}, {'grad_clip_norm': 0.5}, {'loss_scale': 4.0}, {'groups': {'b': {'lr_scale': 0.5}}}):
        (opt, states), (clean, others) = (build('SGD', **options) for _ in range(2))
        opt.on_nonfinite = 'zero'
        for t, bad in enumerate((np.nan, np.inf, -np.inf)):
            opt.update(slopes(t, bad))
            clean.update(slopes(t, 0.0))
        for key in START:
            np.testing.assert_allclose(states[key].value, others[key].value, rtol=1e-12)
    assert int(opt.skipped_count) == 0


def test_ignoring_lets_them_through_and_other_policies_do_not_exist() -> None:
    opt, states = build()
    opt.update(slopes(0, np.nan))
    assert np.isnan(states['w'].value).any()
    for wrong in ('drop', None, True):
        with pytest.raises(ValueError, match='Invalid on_nonfinite='):
            bo.Adam(on_nonfinite=wrong)
        with pytest.raises(ValueError, match='Invalid on_nonfinite='):
            opt.on_nonfinite = wrong
    with pytest.raises(ValueError, match='Invalid max_consecutive_skips=0'):
        bo.Adam(max_consecutive_skips=0)


@pytest.mark.parametrize('metrics', [False, True])
def test_raising_names_the_gradient_and_leaves_everything(metrics: bool) -> None:
    opt, states = build(on_nonfinite='raise', metrics=metrics)
    opt.update(slopes(0))
    before = everything(opt, states)
    with pytest.raises(FloatingPointError, match=r'all States are as they were\. not finite: w \(1 NaN, 0 inf of 4\)'):
        opt.update(slopes(1, np.nan))
    assert_same(before, everything(opt, states))
    opt.update(slopes(1))


def test_raising_in_a_compiled_function() -> None:
    opt, states = build(on_nonfinite='raise')
    update = brainstate.transform.jit(lambda g: opt.update(g))
    update(slopes(0))
    before = everything(opt, states)
    with pytest.raises(Exception, match='Gradients are not finite; all States are as they were'):
        (update(slopes(1, np.nan)), jax.effects_barrier())
    assert_same(before, everything(opt, states))


@pytest.mark.parametrize('how', ['eager', 'jit'])
def test_too_many_skips_in_a_row_are_said_loudly(how: str) -> None:
    opt, _ = build('SGD', on_nonfinite='skip', max_consecutive_skips=3)
    update = brainstate.transform.jit(lambda g: opt.update(g)) if how == 'jit' else opt.update

    def heard(*bad: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            for t, entry in enumerate(bad):
                update(slopes(t, entry))
            jax.effects_barrier()
        return [str(warning.message) for warning in caught]

    assert heard(np.nan, np.inf, None, np.nan, np.nan) == []
    assert heard(np.nan) == ['3 updates in a row were skipped: gradients were not finite. See diagnose(grads).']
    assert len(heard(*[np.nan] * 6)) == 2


def test_an_ensemble_skips_member_by_member() -> None:
    g = jnp.array([1.0, jnp.nan, 2.0])

    def member(slope: Any) -> Any:
        w = brainstate.ParamState(jnp.zeros(()))
        opt = bo.SGD(1.0, on_nonfinite='skip').register_trainable_weights({'w': w})
        opt.update({'w': slope})
        return w.value, opt.step_count.value

    with warnings.catch_warnings():
        moved, counts = jax.vmap(brainstate.transform.jit(member))(g)
    assert moved.tolist() == [-1.0, 0.0, -2.0]
    assert counts.tolist() == [1, 0, 1]


# what is seen


def test_metrics_are_what_numpy_says() -> None:
    opt, states = build('SGD', lr=bo.StepLR(0.5, 1, 0.5), grad_clip_norm=1.0, metrics=True, on_nonfinite='skip',
                        groups={'b': {'lr_scale': 0.1}})  # fmt: skip
    update = brainstate.transform.jit(lambda g: opt.update(g))
    clipped = 0
    for t, call in enumerate((opt.update, update)):
        old = {key: np.array(state.value) for key, state in states.items()}
        call(slopes(t))
        steps = {key: np.array(state.value) - old[key] for key, state in states.items()}
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in slopes(t).values()))
        seen = opt.metrics
        np.testing.assert_allclose(seen['lr'], np.array([0.5, 0.05]) / 2**t, rtol=1e-6)
        np.testing.assert_allclose(seen['grad_norm'], norm, rtol=1e-6)
        assert bool(seen['clipped']) == (norm > 1)
        clipped += norm > 1
        total = np.sqrt(sum(np.sum(np.square(x)) for x in steps.values()))
        np.testing.assert_allclose(seen['update_norm'], total, rtol=1e-6)
        ratios = [np.linalg.norm(steps[key]) / np.linalg.norm(old[key]) for key in ('w', 'b')]
        np.testing.assert_allclose(seen['update_ratio'], ratios, rtol=1e-6)
        opt.lr.step()
    update({key: 1e-3 * g for key, g in slopes(3).items()})
    assert not opt.metrics['clipped']
    np.testing.assert_allclose(opt.metrics['clipped_fraction'], clipped / 3, rtol=1e-6)
    update(slopes(4, np.nan))
    assert int(opt.metrics['skipped']) == 1
    assert ('metrics_state',) in brainstate.graph.states(opt)
    with pytest.raises(ValueError, match='Give metrics=True'):
        _ = build()[0].metrics


@pytest.mark.parametrize('over', ['group', 'weight'])
def test_metrics_of_other_norms(over: str) -> None:
    opt, _ = build('SGD', grad_clip_norm=1e3, grad_clip_over=over, metrics=True)
    opt.update(slopes(0))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in slopes(0).values()))
    np.testing.assert_allclose(opt.metrics['grad_norm'], norm, rtol=1e-6)
    assert not opt.metrics['clipped']


def test_a_diagnosis_names_what_is_wrong() -> None:
    opt, _ = build()
    found = opt.diagnose({'w': jnp.array([[np.nan, np.inf], [1.0, -np.inf]]), 'b': jnp.zeros(2)})
    assert found.not_finite == {'w': (1, 2, 4)}
    assert found.zero == ['b']
    assert opt.diagnose(slopes(0)).norms == pytest.approx({k: np.linalg.norm(g) for k, g in slopes(0).items()})
    assert str(found) == 'not finite: w (1 NaN, 2 inf of 4)\nall zero: b\nlargest norms: none'


# what else an update can do with gradients, for any rule


def test_cautious_updates_are_the_papers() -> None:
    """u * 1[u g > 0] / mean(1[u g > 0]) (Liang et al., 2024)."""
    (opt, states), (plain, others) = build(cautious=True), build()
    momentum, disagreed = dict.fromkeys(START, 0.0), False
    for t in range(4):
        old = {key: np.array(state.value) for key, state in states.items()}
        reset = {key: jnp.asarray(w) for key, w in old.items()}
        for key, state in others.items():
            state.value = reset[key]
        opt.update(slopes(t))
        plain.update(slopes(t))
        for key, g in slopes(t).items():
            momentum[key] = 0.9 * momentum[key] + 0.1 * np.array(g)
            agrees = momentum[key] * np.array(g) > 0
            step = (np.array(others[key].value) - old[key]) * agrees / max(agrees.mean(), 1e-3)
            np.testing.assert_allclose(states[key].value - old[key], step, rtol=1e-7)
            disagreed |= not agrees.all()
    assert disagreed


def test_grokfast_adds_the_average_of_gradients() -> None:
    """g + lambda * h with h = alpha h + (1 - alpha) g, which begins at the first gradient (Lee et al., 2024)."""
    opt, states = build('SGD', lr=1.0, grokfast=2.0, grokfast_decay=0.9)
    expected, averages = dict(START), dict(slopes(0))
    for t in range(4):
        opt.update(slopes(t))
        for key, g in slopes(t).items():
            averages[key] = 0.9 * averages[key] + 0.1 * g
            expected[key] = expected[key] - (g + 2.0 * averages[key])
            np.testing.assert_allclose(states[key].value, expected[key], rtol=1e-12)
    with pytest.raises(ValueError, match='cannot be assigned once weights are registered'):
        opt.grokfast = None
    for options in ({'grokfast': 0.0}, {'grokfast_decay': 1.0}):
        with pytest.raises(ValueError, match='Invalid grokfast'):
            bo.SGD(**options)


@pytest.mark.slow
@pytest.mark.parametrize('name', SIMPLE)
def test_shared_options_serve_every_rule(name: str) -> None:
    moved = []
    for options in ({}, {'cautious': True}, {'grokfast': 1.0}, {'state_dtype': 'float16'}):
        if name.startswith('ScheduleFree') and options.keys() & {'cautious', 'state_dtype'}:
            with pytest.raises(ValueError, match=r'Invalid (cautious|state_dtype)'):
                build(name, **options)
            continue
        opt, states = build(name, **options)
        with jax.disable_jit():
            for t in range(3):
                opt.update(slopes(t))
        assert all(jnp.isfinite(state.value).all() for state in states.values())
        moved.append([state.value for state in states.values()])
    np.testing.assert_allclose(moved[-1][1], moved[0][1], atol=0.5 if name.startswith('ScheduleFree') else 0.1)
