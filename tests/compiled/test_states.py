"""Updates read and write States as assignments do, hooks and refusals included."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate import GlobalHookRegistry, transform
from internals import is_as_known, is_plain, may_access_directly, read, write

import braintools_optim as bo

G = {'w': jnp.array([1.0, -2.0]), 'b': jnp.array([4.0])}

OTHER_STATES = pytest.mark.filterwarnings('ignore:These States are not ParamStates')


class Halving(brainstate.ParamState):
    """A State that stores half of the value that is written."""

    def _write_value(self, v: Any) -> None:
        super()._write_value(0.5 * v)


class Doubling(brainstate.ParamState):
    """A State that reads as twice the stored value."""

    def _read_value(self) -> Any:
        return 2 * super()._read_value()


class Documented(brainstate.ParamState):
    """A State that overrides its constructor only."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.note = 'kept'


def directly(function: Callable[[], None]) -> Callable[[], None]:
    return function


WAYS = {'update': directly, 'jit': bo.jit}


@OTHER_STATES
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('kind', [brainstate.ParamState, Halving, Doubling, Documented, brainstate.HiddenState])
def test_subclasses_of_states_read_and_write_as_defined(kind: Any, way: str) -> None:
    """An update reads and writes like assignments by hand, and inside jit like brainstate's jit."""
    states, expected = ({name: kind(jnp.ones_like(g)) for name, g in G.items()} for _ in range(2))
    optimizer = bo.SGD(lr=0.25).register_trainable_weights(states)

    def by_hand() -> None:
        for name, g in G.items():
            expected[name].value = expected[name].value - 0.25 * g

    run, other = WAYS[way](lambda: optimizer.update(G)), transform.jit(by_hand) if way == 'jit' else by_hand
    for _ in range(3):
        run()
        other()
        for name in G:
            np.testing.assert_array_equal(states[name].value, expected[name].value)
    assert is_plain(kind) == (kind not in (Halving, Doubling))


@contextlib.contextmanager
def of_all(kind: str, hook: Callable[[Any], Any]) -> Iterator[None]:
    handle = GlobalHookRegistry.instance().register_hook(kind, hook)
    try:
        yield
    finally:
        GlobalHookRegistry.instance().unregister_hook(handle)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('everywhere', [False, True])
def test_hooks_are_called(everywhere: bool, way: str) -> None:
    states = {name: brainstate.ParamState(jnp.ones_like(g)) for name, g in G.items()}
    optimizer = bo.SGD(lr=0.25).register_trainable_weights(states)
    run = WAYS[way](lambda: optimizer.update(G))
    run()
    w, seen = states['w'], list[Any]()
    hook = lambda kind: lambda context: seen.append(kind) if context.state is w else None  # noqa: E731
    with contextlib.ExitStack() as stack:
        for kind in ('read', 'write_after'):
            stack.enter_context(of_all(kind, hook(kind)) if everywhere else w.temporary_hook(kind, hook(kind)))
        run()
    assert {'read', 'write_after'} <= set(seen)
    before = len(seen)
    run()
    assert len(seen) == before
    np.testing.assert_array_equal(w.value, 1 - 3 * 0.25 * G['w'])


@pytest.mark.parametrize('way', WAYS)
def test_global_hooks_see_only_known_states(way: str) -> None:
    states = {name: brainstate.ParamState(jnp.ones_like(g)) for name, g in G.items()}
    optimizer = bo.SGD(lr=0.25).register_trainable_weights(states)
    known = {id(state) for state in (*states.values(), *brainstate.graph.states(optimizer).values())}
    is_as_known.cache_clear()
    is_plain.cache_clear()
    seen: list[brainstate.State] = []
    with of_all('write_before', lambda context: seen.append(context.state)):
        WAYS[way](lambda: optimizer.update(G))()
    assert {id(state) for state in seen} <= known
    assert len(seen) >= len(states)


def test_hook_may_replace_the_written_value() -> None:
    w = brainstate.ParamState(jnp.ones(2))
    optimizer = bo.SGD(lr=0.25).register_trainable_weights({'w': w})
    with w.temporary_hook('write_before', lambda context: setattr(context, 'transformed_value', jnp.zeros(2))):
        optimizer.update({'w': G['w']})
    np.testing.assert_array_equal(w.value, np.zeros(2))


def veto(context: Any) -> None:
    context.cancel = True


@pytest.mark.parametrize(
    'refusing', ['w', 'optimizer state', *(pytest.param(x, marks=pytest.mark.slow) for x in ('b', 'any'))]
)
@pytest.mark.parametrize('way', [*WAYS, 'minimize'])
@pytest.mark.parametrize('donate', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_write_refused_by_a_hook_changes_nothing(donate: bool, way: str, refusing: str) -> None:
    states, twins = ({name: brainstate.ParamState(jnp.ones_like(g)) for name, g in G.items()} for _ in range(2))
    build = functools.partial(bo.Adam, 0.25, metrics=True, on_nonfinite='skip')
    optimizer, twin = (
        build(loss_scale=bo.DynamicLossScale(8.0, growth_interval=1)).register_trainable_weights(own)
        for own in (states, twins)
    )
    optimizer.donate_weights = donate
    loss = {id(own): lambda own=own: sum(jnp.sum(s.value**2) for s in own.values()) for own in (states, twins)}
    step = lambda o, own: (lambda: o.minimize(loss[id(own)])) if way == 'minimize' else lambda: o.update(G)  # noqa: E731
    run, run_twin = WAYS.get(way, directly)(step(optimizer, states)), step(twin, twins)
    everything = lambda o, own: [s.value for s in (*own.values(), *brainstate.graph.states(o).values())]  # noqa: E731
    run()
    run_twin()
    hooked = {**states, 'optimizer state': optimizer.opt_state}
    with of_all('write_before', veto) if refusing == 'any' else hooked[refusing].temporary_hook('write_before', veto):
        for _ in range(2):
            with pytest.raises(brainstate.HookCancellationError):
                run()
    for got, expected in zip(everything(optimizer, states), everything(twin, twins), strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    run()
    run_twin()
    for name in G:
        np.testing.assert_allclose(states[name].value, twins[name].value, rtol=1e-12)


@pytest.mark.parametrize(
    ('transformed', 'g'),
    [(jax.vmap, jnp.stack([G['w']] * 3)), (lambda f: jax.grad(lambda g: (f(g), 0.0)[1]), G['w']), (jax.jit, G['w'])],
    ids=['vmap', 'grad', 'jit'],
)
def test_update_under_plain_jax_transformation_changes_nothing(transformed: Any, g: Any) -> None:
    w, b = brainstate.ParamState(jnp.ones(2)), brainstate.ParamState(jnp.ones(1))
    optimizer = bo.Adam(0.25).register_trainable_weights({'b': b, 'w': w})
    with pytest.raises(Exception, match='no brainstate transformation'):
        transformed(lambda g: optimizer.update({'w': g, 'b': G['b']}))(g)
    assert optimizer.step_count.value == 0
    np.testing.assert_array_equal(b.value, np.ones(1))
    optimizer.update(G)


def test_direct_write_equals_assignment() -> None:
    new = jnp.ones(2)
    for kind in (brainstate.State, brainstate.ParamState, bo.OptimState):
        direct, usual = kind(jnp.zeros(2)), kind(jnp.zeros(2))
        write([direct], [new], direct=True)
        usual.value = new
        own = {'_hooks_manager', '_source_info', '_trace_state'}
        ours, theirs = ({k: v for k, v in vars(state).items() if k not in own} for state in (direct, usual))
        assert ours.keys() == theirs.keys()
        assert all(ours[name] is theirs[name] for name in ours)
        assert may_access_directly([direct])
        assert read([direct], direct=True)[0] is read([usual], direct=False)[0] is new
        assert is_plain(kind)


def test_direct_write_is_off_if_brainstate_writes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Direct writes are used only if a trial write changes the known attributes and no others."""
    usual: Any = brainstate.State.value

    def counting(state: Any, value: Any) -> None:
        usual.fset(state, value)
        vars(state)['version'] = 1

    monkeypatch.setattr(brainstate.State, 'value', property(usual.fget, counting))
    assert not is_as_known.__wrapped__()


def test_direct_write_is_off_if_hooks_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Direct writes are used only if a trial hook can be detected."""
    assert is_as_known.__wrapped__()
    monkeypatch.setattr(brainstate.State, 'register_hook', lambda state, kind, hook: None)
    assert not is_as_known.__wrapped__()


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('calls', [0, 3])
@pytest.mark.parametrize('which', ['weight', 'optimizer state'])
def test_state_of_a_finished_trace_is_refused(which: str, calls: int, way: str) -> None:
    w = brainstate.ParamState(jnp.ones(2))
    optimizer = bo.SGD(lr=0.25).register_trainable_weights({'w': w})
    run = WAYS[way](lambda: optimizer.update({'w': G['w']}))
    for _ in range(calls):
        run()
    state = {'weight': w, 'optimizer state': optimizer.opt_state}[which]
    before = state.value
    state._invalidate_trace_value()
    with pytest.raises(Exception, match='was created inside a traced function'):
        run()
    state.value = before
    run()
    np.testing.assert_array_equal(w.value, 1 - (calls + 1) * 0.25 * G['w'])


@OTHER_STATES
def test_brainstate_value_checks_run() -> None:
    w = brainstate.ParamState(jnp.ones(2))
    optimizer = bo.SGD(lr=0.25).register_trainable_weights({'w': w})
    with brainstate.check_state_value_tree():
        optimizer.update({'w': G['w']})
    made: list[brainstate.State] = []
    transform.jit(lambda: made.append(brainstate.State(jnp.ones(2))))()
    made[0].value = jnp.ones(2)
    with brainstate.check_state_jax_tracer():
        with pytest.raises(Exception, match='different trace level'):
            made[0].value = jnp.zeros(2)
        late = bo.SGD(lr=0.25)
        with pytest.raises(Exception, match='different trace level'):
            late.register_trainable_weights({'w': made[0]}).update({'w': G['w']})
