"""One update, wherever it is called from: the same numbers, one compilation, nothing changed by an error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_table import DISTINCT
from table import OPTIMIZERS, thinned

import braintools_optim as bo
from braintools_optim.clipping import global_norm

every_optimizer = pytest.mark.parametrize('optimizer', OPTIMIZERS, ids=lambda o: o.__name__)
transform = brainstate.transform


def model(dtype: Any = jnp.float32) -> dict[Any, brainstate.ParamState]:
    return {
        ('layers', 0, 'weight'): brainstate.ParamState({'weight': jnp.ones((2, 3), dtype), 'bias': jnp.ones(3, dtype)}),
        ('scale',): brainstate.ParamState(jnp.asarray(2.0, dtype)),
    }


def gradients(t: float = 0.0, dtype: Any = jnp.float32) -> dict[Any, Any]:
    return {
        ('layers', 0, 'weight'): {
            'weight': jnp.asarray(np.sin(np.arange(6.0) + t).reshape(2, 3), dtype),
            'bias': jnp.asarray(np.cos(np.arange(3.0) + t), dtype),
        },
        ('scale',): jnp.asarray(0.5 + t, dtype),
    }


def values(states: dict[Any, brainstate.State]) -> Any:
    return jax.tree.map(np.array, [state.value for state in states.values()])


def everything(optimizer: bo.Optimizer, states: dict[Any, brainstate.State]) -> Any:
    return values(states), {k: jax.tree.map(np.array, s.value) for k, s in brainstate.graph.states(optimizer).items()}


def assert_same(a: Any, b: Any, **tolerance: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{'rtol': 0.0, **tolerance}), a, b)


# where it is called from


def in_jit(update: Callable[[Any], None], steps: list[Any]) -> None:
    compiled = transform.jit(update)
    for g in steps:
        compiled(g)


def in_for_loop(update: Callable[[Any], None], steps: list[Any]) -> None:
    transform.for_loop(update, jax.tree.map(lambda *g: jnp.stack(g), *steps))


def in_scan(update: Callable[[Any], None], steps: list[Any]) -> None:
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *steps)
    transform.scan(lambda carry, g: (carry + 1, update(g)), 0, stacked)


def in_cond(update: Callable[[Any], None], steps: list[Any]) -> None:
    for g in steps:
        transform.cond(jnp.asarray(True), lambda g=g: update(g), lambda: None)
        transform.cond(jnp.asarray(False), lambda g=g: update(g), lambda: None)


@every_optimizer
@pytest.mark.parametrize(
    'call', [in_jit, in_for_loop, *(pytest.param(call, marks=pytest.mark.slow) for call in (in_scan, in_cond))]
)
def test_compiled_by_the_user_equals_eager(optimizer: type[bo.Optimizer], call: Callable[..., None]) -> None:
    results = []
    for run in (lambda update, steps: [update(g) for g in steps], call):
        states = model()
        opt = optimizer(lr=bo.StepLR(0.1, 2, 0.5), grad_clip_norm=1.0, grad_clip_value=0.4)
        opt.register_trainable_weights(states)

        def update(g: Any, opt: bo.Optimizer = opt) -> None:
            opt.update(g)
            opt.lr.step()

        run(update, [gradients(t) for t in range(3)])
        results.append(everything(opt, states))
    assert_same(*results, rtol=1e-5, atol=1e-6)


@thinned(OPTIMIZERS, 'optimizer')
def test_vmap_updates_an_ensemble(optimizer: type[bo.Optimizer]) -> None:
    rates, slopes = jnp.array([0.1, 0.2, 0.3]), jnp.array([[1.0, -2.0], [3.0, 0.5], [0.2, 0.7]])
    built: dict[str, Any] = {}

    @transform.vmap_new_states(state_tag='new', axis_size=3)
    def build() -> None:
        built['w'] = brainstate.ParamState(jnp.ones(2))
        built['optimizer'] = optimizer(lr=0.1).register_trainable_weights({'w': built['w']})

    build()

    @transform.vmap2(state_in_axes={0: brainstate.util.filter.OfType(brainstate.State)}, in_axes=0)
    def update(rate: Any, g: Any) -> None:
        built['optimizer'].lr = rate
        built['optimizer'].update({'w': g})

    update(rates, slopes)
    update(rates, slopes)
    for i, rate in enumerate(rates):
        w = brainstate.ParamState(jnp.ones(2))
        alone = optimizer(lr=float(rate)).register_trainable_weights({'w': w})
        alone.update({'w': slopes[i]})
        alone.update({'w': slopes[i]})
        np.testing.assert_allclose(built['w'].value[i], w.value, rtol=1e-5)


@every_optimizer
def test_second_call_compiles_nothing(optimizer: type[bo.Optimizer]) -> None:
    states, scheduler = model(), bo.WarmupScheduler(0.1, 3)
    opt = optimizer(lr=scheduler, grad_clip_norm=1.0, weight_decay=0.01).register_trainable_weights(states)
    compiled = transform.jit(lambda g: opt.update(g))
    some, others = gradients(0.0), gradients(1.0)
    opt.update(some)
    compiled(some)
    scheduler.step()
    opt.lr, opt.weight_decay = 0.05, 0.02  # the first time, their own small arithmetic is compiled
    with compilations(0):
        opt.update(others)
        compiled(others)
        scheduler.step()
        opt.lr = 0.02
        opt.weight_decay = 0.1
        opt.update(some)
        compiled(some)
        compiled(others)


@pytest.mark.parametrize('scheduler', [case.build for case in DISTINCT], ids=[case.name for case in DISTINCT])
def test_schedulers_compile_once(scheduler: Callable[[], bo.LRScheduler]) -> None:
    states = model()
    opt = bo.SGD(lr=scheduler(), momentum=0.5).register_trainable_weights(states)
    some, others = gradients(0.0), gradients(1.0)
    opt.update(some)
    opt.lr.step()
    with compilations(0):
        opt.lr.step()
        opt.update(others)


def test_weakly_typed_weights_are_given_their_type_at_once() -> None:
    states = {
        'weak': brainstate.ParamState(jnp.broadcast_to(jnp.asarray(0.0), 3)),
        'number': brainstate.ParamState(1.0),
    }
    opt = bo.Adam().register_trainable_weights(states)
    g = {'weak': jnp.ones(3), 'number': jnp.asarray(1.0)}
    opt.update(g)
    with compilations(0):
        opt.update(g)
    mixed = {'volts': jnp.ones(2) * u.mV, 'gain': [jnp.ones(2)]}
    assert float(bo.global_norm(mixed)) == 2.0


def test_a_compiled_function_follows_every_option() -> None:
    states = model()
    opt = bo.SGD(lr=1.0, momentum=0.5).register_trainable_weights(states)
    compiled = transform.jit(lambda g: opt.update(g))
    flat = jax.tree.map(jnp.ones_like, gradients())
    compiled(flat)
    assert float(states[('scale',)].value) == 1.0
    opt.maximize = True  # a flag
    compiled(flat)
    assert float(states[('scale',)].value) == 1.5  # the buffer is 0.5 * 1 - 1
    opt.lr = bo.ConstantLR(0.0)  # another schedule
    compiled(flat)
    assert float(states[('scale',)].value) == 1.5
    opt.lr, opt.grad_clip_value, opt.momentum = bo.ConstantLR(1.0, factor=1.0), 0.25, 1e-30
    compiled(flat)
    assert float(states[('scale',)].value) == 1.75


# dtypes, structure and memory


def test_a_gradient_wider_than_its_weight_keeps_its_range() -> None:
    w = brainstate.ParamState(jnp.zeros(1, 'float16'))
    bo.SGD(1e-5).register_trainable_weights({'w': w}).update({'w': jnp.full(1, 1e5, 'float32')})
    np.testing.assert_allclose(w.value, -1.0, rtol=1e-3)


@every_optimizer
@pytest.mark.parametrize(
    'dtype', ['bfloat16', 'float32', *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ('float16', 'float64'))]
)
def test_dtype_and_structure_are_kept(optimizer: type[bo.Optimizer], dtype: str) -> None:
    states = model(dtype)
    opt = optimizer(lr=0.1, grad_clip_norm=1.0).register_trainable_weights(states)
    avals = jax.tree.flatten(jax.tree.map(jax.typeof, everything(opt, states)))
    for g in (gradients(dtype=dtype), gradients(dtype='float64')):  # a wider gradient widens nothing
        opt.update(g)
    assert jax.tree.flatten(jax.tree.map(jax.typeof, everything(opt, states))) == avals
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(values(states)))
    assert all(leaf.dtype not in ('float16', 'bfloat16') for leaf in jax.tree.leaves(opt.opt_state.value))


@pytest.mark.parametrize('optimizer', [bo.SGD, bo.Adam, bo.RAdam, bo.RMSprop])
def test_complex_weights_are_pairs_of_reals(optimizer: type[bo.Optimizer]) -> None:
    z, pair = (
        brainstate.ParamState(jnp.array([1 + 2j, 3.0])),
        brainstate.ParamState(jnp.array([[1.0, 2.0], [3.0, 0.0]])),
    )
    opt = optimizer(lr=0.1, grad_clip_norm=1.0, grad_clip_value=0.5)
    opt.register_trainable_weights({'z': z})
    real = optimizer(lr=0.1, grad_clip_norm=1.0, grad_clip_value=0.5).register_trainable_weights({'z': pair})
    target, weight = jnp.array([2 + 1j, 3j]), jnp.array([1.0, 0.1])
    for _ in range(3):  # jax's gradient is the conjugate of what the loss grows along
        opt.update(transform.grad(lambda: jnp.sum(weight * jnp.abs(z.value - target) ** 2), {'z': z})())
        parts = lambda: pair.value - jnp.stack([target.real, target.imag], -1)  # noqa: E731
        real.update(transform.grad(lambda: jnp.sum(weight[:, None] * parts() ** 2), {'z': pair})())  # noqa: B023
    np.testing.assert_allclose(np.stack([z.value.real, z.value.imag], -1), pair.value, rtol=1e-12)


def test_states_are_found_by_the_graph() -> None:
    opt = bo.Adam(bo.StepLR(0.1)).register_trainable_weights(model())
    found = {'.'.join(path) for path in brainstate.graph.states(opt)}
    schedule = {f'settings.lr_scheduler.{name}' for name in ('last_epoch', 'manual')}
    assert found == {'opt_state', 'settings.step_count', 'settings.values'} | schedule
    names = ['layers.0.weight.bias', 'layers.0.weight.weight', 'scale']
    assert {slot: list(leaves) for slot, leaves in opt.opt_state.value.items() if slot not in ('step', 'skipped')} == {
        'exp_avg': names,
        'exp_avg_sq': names,
    }


def test_the_memory_is_donated_and_the_weights_are_not() -> None:
    states = model()
    opt = bo.Adam().register_trainable_weights(states)
    held, memory = states[('scale',)].value, opt.opt_state.value
    opt.update(gradients())
    assert float(held) == 2.0
    assert memory['exp_avg']['scale'].is_deleted()
    opt.donate_weights = True
    held = states[('scale',)].value
    opt.update(gradients())
    assert held.is_deleted()
    assert np.isfinite(states[('scale',)].value)


@pytest.mark.parametrize('share', [lambda x: x, lambda x: jax.device_put(x, jax.devices()[0])], ids=['same', 'another'])
def test_donated_weights_may_share_a_buffer(share: Callable[[Any], Any]) -> None:
    """With each other, or with a gradient, which is kept."""
    zero = jnp.zeros(2)
    states = {'a': brainstate.ParamState(zero), 'b': brainstate.ParamState(share(zero))}
    opt = bo.SGD(0.5).register_trainable_weights(states)
    opt.donate_weights = True
    opt.update({'a': jnp.ones(2), 'b': -jnp.ones(2)})
    np.testing.assert_array_equal(states['a'].value, [-0.5, -0.5])
    g = {'a': share(states['b'].value), 'b': share(states['b'].value)}
    opt.update(g)
    np.testing.assert_array_equal(states['a'].value, [-0.75, -0.75])
    np.testing.assert_array_equal(states['b'].value, [0.25, 0.25])
    np.testing.assert_array_equal(g['a'], [0.5, 0.5])


def test_weights_added_later_start_their_own_memory() -> None:
    w, late = brainstate.ParamState(jnp.zeros(1)), brainstate.ParamState(jnp.zeros(1))
    opt = bo.Adam(lr=0.1).register_trainable_weights({'w': w})
    for _ in range(3):
        opt.update({'w': jnp.ones(1)})
    memory = float(opt.opt_state.value['exp_avg']['w'][0])
    opt.register_trainable_weights({'w': w, 'late': late})
    assert float(opt.opt_state.value['exp_avg']['w'][0]) == memory
    opt.update({'w': jnp.ones(1), 'late': jnp.ones(1)})
    np.testing.assert_allclose(late.value, -0.1, rtol=1e-6)  # a first step, corrected as one
    assert opt.opt_state.value['step'].tolist() == [4, 1]
    assert int(opt.step_count.value) == 4


# gradients


WRONG = [
    (
        lambda g: {('scale',): g[('scale',)]},
        KeyError,
        r'missing or None: layers\.0\.weight\.bias, layers\.0\.weight\.weight',
    ),
    (lambda g: {**g, ('extra',): g[('scale',)]}, KeyError, 'not registered: extra'),
    (lambda g: {**g, ('scale',): None}, KeyError, 'missing or None: scale'),
    (lambda g: None, KeyError, 'missing or None'),
    (
        lambda g: {**g, ('scale',): jnp.ones(3)},
        ValueError,
        r'scale: .* float32\[\], its gradient float64\[3\]',
    ),
    (lambda g: {**g, ('scale',): jnp.ones((), int)}, ValueError, 'scale: the weight is float32'),
    (lambda g: {**g, ('scale',): jnp.ones((), complex)}, ValueError, 'scale: the weight is float32'),
    (lambda g: {**g, ('layers', 0, 'weight'): jnp.ones((2, 3))}, ValueError, 'layers.0.weight.* has the structure'),
    (lambda g: {**g, ('scale',): {'a': g[('scale',)]}}, ValueError, 'scale has the structure'),
    (lambda g: {**g, ('scale',): g[('scale',)] * u.mV}, ValueError, r'gradient of scale has the unit mV'),
]


@every_optimizer
@pytest.mark.parametrize('jitted', [False, True])
def test_wrong_gradients_change_nothing(optimizer: type[bo.Optimizer], jitted: bool) -> None:
    states = model()
    opt = optimizer(lr=0.1).register_trainable_weights(states)
    opt.update(gradients())
    update = transform.jit(lambda g: opt.update(g)) if jitted else opt.update
    before = everything(opt, states)
    for wrong, error, match in WRONG:
        with pytest.raises(error, match=match):
            update(wrong(gradients()))
        assert_same(before, everything(opt, states))
    update(gradients())


def test_gradients_may_be_nested_or_flat_and_in_any_order() -> None:
    expected = None
    g = gradients()
    nested = {'scale': g[('scale',)], 'layers': {0: {'weight': g['layers', 0, 'weight']}}}
    for form in (g, dict(reversed(g.items())), nested, {**nested, 'layers': [nested['layers'][0]]}):
        states = model()
        bo.SGD(0.1).register_trainable_weights(states).update(form)
        expected = expected or values(states)
        assert_same(expected, values(states))


def test_brainstate_grad_of_a_module() -> None:
    net = brainstate.nn.Sequential(brainstate.nn.Linear(3, 4), brainstate.nn.Linear(4, 2))
    states = net.states(brainstate.ParamState)
    opt = bo.Adam(0.05).register_trainable_weights(states)

    @transform.jit
    def train() -> Any:
        grads, loss = transform.grad(lambda: jnp.sum(net(jnp.ones(3)) ** 2), states, return_value=True)()
        opt.update(grads)
        return loss

    losses = [float(train()) for _ in range(20)]
    assert losses[-1] < 0.2 * losses[0]
    assert len(opt.param_states) == 2
    assert set(opt.param_states.to_pytree_value()['layers']) == {0, 1}


def test_tied_weights_count_once() -> None:
    w = brainstate.ParamState(jnp.array([3.0, 4.0]))
    opt = bo.SGD(1.0, grad_clip_norm=1.0).register_trainable_weights({'a': w, 'b': w})
    opt.update(transform.grad(lambda: jnp.sum(w.value**2) / 2, {'a': w, 'b': w})())
    np.testing.assert_allclose(w.value, [3 - 3 / (5 + 1e-6), 4 - 4 / (5 + 1e-6)], rtol=1e-12)
    assert len(opt.param_states) == 1


def test_the_norm_is_of_all_groups_together_in_float32_at_least() -> None:
    a, b = brainstate.ParamState(jnp.zeros(1, 'float16')), brainstate.ParamState(jnp.zeros(1))
    opt = bo.SGD(1.0, grad_clip_norm=1.0).register_trainable_weights({'a': a})
    opt.add_param_group({'b': b}, lr=10.0)
    opt.update({'a': jnp.full(1, 6e4, 'float16'), 'b': jnp.full(1, 8e4)})
    np.testing.assert_allclose([a.value[0], b.value[0]], [-0.6, -8.0], rtol=1e-3)
    assert np.isfinite(global_norm([jnp.full(1000, 6e4, 'float16')]))


def test_clipping_is_by_norm_then_by_value() -> None:
    w = brainstate.ParamState(jnp.zeros(2))
    bo.SGD(1.0, grad_clip_norm=10.0, grad_clip_value=7.0).register_trainable_weights({'w': w}).update(
        {'w': jnp.array([30.0, 40.0])}
    )
    np.testing.assert_allclose(w.value, [-6.0, -7.0], rtol=1e-6)


# units


@every_optimizer
def test_both_forms_of_gradients_with_units_agree(optimizer: type[bo.Optimizer]) -> None:
    results = []
    for unit_aware in (False, True):
        states = {
            'v': brainstate.ParamState({'rest': jnp.array([1.0, -2.0]) * u.mV, 'gain': jnp.array(3.0)}),
            'g': brainstate.ParamState(jnp.array(0.5) * u.nS),
        }
        opt = optimizer(lr=0.1).register_trainable_weights(states)

        def loss(states: Any = states) -> Any:
            current = states['v'].value['rest'] * states['g'].value * states['v'].value['gain']
            return jnp.sum(u.get_mantissa(current / u.pA) ** 2)

        for _ in range(3):
            opt.update(transform.grad(loss, states, unit_aware=unit_aware)())
        assert u.get_unit(states['v'].value['rest']) == u.mV
        results.append(jax.tree.map(np.array, [u.get_mantissa(x) for x in jax.tree.leaves(values(states))]))
    assert_same(*results, rtol=1e-9)


def test_a_gradient_on_another_scale_is_converted() -> None:
    w = brainstate.ParamState(jnp.array(1.0) * u.mV)
    opt = bo.SGD(1.0).register_trainable_weights({'w': w})
    opt.update({'w': jnp.array(0.0005) * u.volt})
    np.testing.assert_allclose(w.value.to_decimal(u.mV), 0.5)
    opt.update({'w': jnp.array(500.0) / u.volt})  # of a loss without unit: 0.5 / mV
    np.testing.assert_allclose(w.value.to_decimal(u.mV), 0.0, atol=1e-12)
    opt.update({'w': jnp.array(1.0) * u.nA}, loss_unit=u.nA * u.mV)
    np.testing.assert_allclose(w.value.to_decimal(u.mV), -1.0)
    for wrong in (jnp.array(1.0) * u.nA, jnp.array(1.0)):
        with pytest.raises(ValueError, match=r'gradient of w has the unit .*, its weight mV'):
            opt.update({'w': wrong})
    np.testing.assert_allclose(w.value.to_decimal(u.mV), -1.0)


def test_a_changed_unit_is_noticed() -> None:
    w = brainstate.ParamState(jnp.array(1.0) * u.mV)
    opt = bo.SGD(1.0).register_trainable_weights({'w': w})
    w.value = w.value.to(u.volt)
    with pytest.raises(ValueError, match=r'w: .* is now'):
        opt.update({'w': jnp.array(0.5) * u.mV})


# optax, user rules, derivatives


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (lambda: bo.OptaxOptimizer(optax.adam(0.1)), optax.adam(0.1)),
        (lambda: bo.OptaxOptimizer(optax.sgd(0.1, 0.9, nesterov=True)), optax.sgd(0.1, 0.9, nesterov=True)),
        (
            lambda: bo.OptaxOptimizer(lr=0.1, weight_decay=0.3),
            optax.chain(optax.add_decayed_weights(0.3), optax.scale_by_adam(), optax.scale(-0.1)),
        ),
        (lambda: bo.OptaxOptimizer(optax.lion(0.2), lr=0.5), optax.lion(0.1)),
        (
            lambda: bo.OptaxOptimizer(optax.adam(0.1), grad_clip_value=0.3),
            optax.chain(optax.clip(0.3), optax.adam(0.1)),
        ),
        (
            lambda: bo.Adam(0.1, weight_decay=0.3),
            optax.chain(optax.add_decayed_weights(0.3), optax.scale_by_adam(), optax.scale(-0.1)),
        ),
        (lambda: bo.AdamW(0.1, weight_decay=0.3), optax.adamw(0.1, weight_decay=0.3)),
    ],
)
def test_optax_gives_the_same(ours: Callable[[], bo.Optimizer], theirs: optax.GradientTransformation) -> None:
    states = model(jnp.float64)
    opt = ours().register_trainable_weights(states)
    params = {key: state.value for key, state in model(jnp.float64).items()}
    params = {'layer': params['layers', 0, 'weight'], 'scale': params[('scale',)]}
    state = theirs.init(params)
    for t in range(4):
        g = gradients(t, jnp.float64)
        opt.update(g)
        updates, state = theirs.update({'layer': g['layers', 0, 'weight'], 'scale': g[('scale',)]}, state, params)
        params = optax.apply_updates(params, updates)
    assert_same([params['layer'], params['scale']], values(states), rtol=1e-6)


@every_optimizer
def test_an_optimizer_as_an_optax_transformation(optimizer: type[bo.Optimizer]) -> None:
    build = functools.partial(optimizer, lr=optax.linear_schedule(0.1, 0.0, 10), grad_clip_norm=1.0, weight_decay=0.1)
    states = model(jnp.float64)
    opt = build().register_trainable_weights(states)
    tx = optax.chain(optax.identity(), bo.to_optax(build()))
    params = {'layer': {'bias': jnp.ones(3), 'weight': jnp.ones((2, 3))}, 'scale': jnp.asarray(2.0)}
    state = tx.init(params)
    for t in range(3):
        g = gradients(t, jnp.float64)
        opt.update(g)
        updates, state = jax.jit(tx.update)({'layer': g['layers', 0, 'weight'], 'scale': g[('scale',)]}, state, params)
        params = optax.apply_updates(params, updates)
    assert_same([params['layer'], params['scale']], values(states), rtol=1e-12)


def test_extra_arguments_reach_optax() -> None:
    w = brainstate.ParamState(jnp.array([3.0, -2.0]))
    opt = bo.OptaxOptimizer(optax.polyak_sgd(max_learning_rate=1.0)).register_trainable_weights({'w': w})
    for _ in range(3):
        opt.update({'w': 2 * w.value}, value=jnp.sum(w.value**2))
    np.testing.assert_allclose(w.value, np.array([3.0, -2.0]) / 8, rtol=1e-6)


def test_a_rule_is_ten_lines() -> None:
    class SignMomentum(bo.Optimizer):
        def __init__(self, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0):
            super().__init__(lr, momentum=momentum, weight_decay=weight_decay)

        def init_slots(self, w: Any, hp: Any) -> Any:
            return {'momentum_buffer': jnp.zeros_like(w)}

        def direction(self, g: Any, w: Any, slots: Any, hp: Any) -> Any:
            buffer = hp.momentum * slots['momentum_buffer'] + g
            return jnp.sign(buffer), {'momentum_buffer': buffer}

    w = brainstate.ParamState(jnp.array([1.0, 1.0]))
    opt = SignMomentum(lr=0.5).register_trainable_weights({'w': w})
    opt.update({'w': jnp.array([2.0, -3.0])})
    opt.update({'w': jnp.array([-1.0, -3.0])})
    np.testing.assert_allclose(w.value, [0.0, 2.0])
    opt.momentum = 0.25
    opt.update({'w': jnp.array([-0.5, 0.5])})  # the buffer is 0.25 * 0.8 - 0.5
    np.testing.assert_allclose(w.value, [0.5, 2.5])


@thinned(OPTIMIZERS, 'optimizer')
def test_derivatives_through_updates(optimizer: type[bo.Optimizer]) -> None:
    """Of a later loss with respect to lr and to the initial weights, against finite differences."""
    zero = 1e-3 if optimizer is bo.OptaxOptimizer else 0.0  # optax's root has no derivative at zero
    target = jnp.array([0.3, -0.7, 1.1])
    w, still = brainstate.ParamState(jnp.zeros(3)), brainstate.ParamState(jnp.ones(2))
    opt = optimizer(lr=0.1, weight_decay=0.0).register_trainable_weights({'w': w, 'still': still})
    memory, start = jax.tree.map(np.array, opt.opt_state.value), opt.step_count.value

    def later_loss(lr: Any, initial: Any) -> Any:
        opt.opt_state.value, opt.step_count.value = jax.tree.map(jnp.asarray, memory), start
        opt.lr, w.value, still.value = lr, initial, jnp.ones(2)
        for t in range(5):
            g = (w.value - target) * (1.0 + 0.3 * t) + 0.1 * jnp.sin(3 * w.value)
            opt.update({'w': g, 'still': jnp.full(2, zero)})  # a weight that never has a gradient
        return jnp.sum((w.value - target) ** 2) + jnp.sum(still.value)

    at = 0.05, jnp.array([1.0, 0.5, -0.5])
    slopes = transform.jit(transform.grad(later_loss, argnums=(0, 1)))(*at)
    evaluate, h = transform.jit(later_loss), 1e-6
    numeric_lr = (evaluate(at[0] + h, at[1]) - evaluate(at[0] - h, at[1])) / (2 * h)
    np.testing.assert_allclose(slopes[0], numeric_lr, rtol=1e-5)
    for i, e in enumerate(jnp.eye(3)):
        numeric = (evaluate(at[0], at[1] + h * e) - evaluate(at[0], at[1] - h * e)) / (2 * h)
        np.testing.assert_allclose(slopes[1][i], numeric, rtol=1e-5, atol=1e-8)


# any tree


LEAVES = st.sampled_from([(), (1,), (3,), (0,), (2, 3)])
TREES = st.recursive(
    LEAVES,
    lambda t: st.dictionaries(st.sampled_from('abcd'), t, min_size=1, max_size=3) | st.lists(t, min_size=1, max_size=2),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(TREES, st.sampled_from([jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]))
def test_any_tree_of_any_dtype_steps_as_its_leaves_do(tree: Any, dtype: Any) -> None:
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    states = jax.tree.map(lambda s: brainstate.ParamState(jnp.full(s, 1.5, dtype)), {'root': tree}, is_leaf=is_shape)
    grads = jax.tree.map(lambda s: jnp.full(s, 0.5, dtype), {'root': tree}, is_leaf=is_shape)
    with jax.disable_jit():
        bo.SGD(lr=0.5, momentum=0.5).register_trainable_weights(states).update(grads)
    for state in jax.tree.leaves(states, is_leaf=lambda x: isinstance(x, brainstate.State)):
        assert state.value.dtype == dtype
        np.testing.assert_array_equal(np.asarray(state.value, np.float64), 1.25)


def test_a_changed_shape_is_noticed() -> None:
    w = brainstate.ParamState(jnp.ones(3))
    opt = bo.Adam(0.1).register_trainable_weights({'w': w})
    opt.update({'w': jnp.ones(3)})
    w.value = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r'w: \[3\] is now \[2, 3\]'):
        opt.update({'w': jnp.ones((2, 3))})
    assert opt.opt_state.value['exp_avg']['w'].shape == (3,)


def test_a_float16_gradient_is_rescaled_without_overflow() -> None:
    w = brainstate.ParamState(jnp.ones(2, 'float16') * u.mV)
    opt = bo.SGD(1e-3).register_trainable_weights({'w': w})
    opt.update({'w': jnp.full(2, 100.0, 'float16') * u.volt})
    np.testing.assert_allclose(w.value.mantissa, -99.0)


@pytest.mark.parametrize('sam', [False, True])
def test_what_the_loss_does_not_depend_on_has_the_gradient_zero(sam: bool) -> None:
    def build() -> tuple[Any, dict[str, brainstate.ParamState], Any]:
        w = {'a': brainstate.ParamState(jnp.arange(3.0)), 'b': brainstate.ParamState(jnp.ones(2))}
        base = bo.SGD(0.1, momentum=0.9, weight_decay=0.5)
        return (bo.SAM(base) if sam else base).register_trainable_weights(w), w, lambda: jnp.sum(w['a'].value ** 2)

    (ours, weights, loss), (theirs, same, same_loss) = build(), build()
    for _ in range(3):
        ours.minimize(loss)
        gradients = {'a': 2 * same['a'].value, 'b': jnp.zeros(2)}
        theirs.update(gradients, value_fn=lambda: same_loss() + 0 * same['b'].value.sum())
    for name, state in weights.items():
        np.testing.assert_allclose(state.value, same[name].value, rtol=1e-12)
