"""``bo.jit`` equals ``brainstate.transform.jit`` bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate import transform
from compiling import compilations
from internals import plan
from state_functions import N, X, add, states

import braintools_optim as bo


def return_new(s: Any, x: Any) -> Any:
    s['a'].value = s['a'].value * x
    return s['a'].value, s['a'].value


def return_read_only(s: Any, x: Any) -> Any:
    s['a'].value = s['a'].value + 1
    return s['b'].value


def keep_argument(s: Any, x: Any) -> Any:
    s['a'].value = x


def keep_constant(s: Any, x: Any) -> Any:
    s['a'].value = X


def share(s: Any, x: Any) -> Any:
    s['a'].value = s['b'].value = s['a'].value + x


def swap(s: Any, x: Any) -> Any:
    s['a'].value, s['b'].value, s['c'].value = s['b'].value, s['a'].value, s['b'].value


def history(s: Any, x: Any) -> Any:
    s['b'].value = s['a'].value
    s['a'].value = s['a'].value * x


def grow(s: Any, x: Any) -> Any:
    s['a'].value = jnp.concatenate([s['a'].value, x])
    s['b'].value = s['b'].value + 1


def change_dtype(s: Any, x: Any) -> Any:
    s['a'].value = s['a'].value.astype(jnp.float16)
    s['number'].value = s['number'].value * 2


def write_tree(s: Any, x: Any) -> Any:
    s['tree'].value = {'u': s['tree'].value['u'] + x, 'v': s['tree'].value['v']}


def overwrite(s: Any, x: Any) -> Any:
    s['a'].value = jnp.zeros_like(x)


def new_state(s: Any, x: Any) -> Any:
    inner = brainstate.State(x * 2)
    inner.value = inner.value + s['a'].value
    s['a'].value = inner.value
    return inner.value


def random(s: Any, x: Any) -> Any:
    s['a'].value = s['a'].value + brainstate.random.normal(size=N)


def print_it(s: Any, x: Any) -> Any:
    jax.debug.callback(lambda _: None, x)
    s['a'].value = s['a'].value + x


def nothing(s: Any, x: Any) -> Any:
    return x


FUNCTIONS = [
    add,
    return_new,
    return_read_only,
    keep_argument,
    keep_constant,
    share,
    swap,
    history,
    grow,
    change_dtype,
    write_tree,
    overwrite,
    new_state,
    random,
    print_it,
    nothing,
]


def trajectory(jit: Callable[..., Any], function: Any, aliased: bool) -> Any:
    """Return all results and values of four calls, read only at the end, so that no buffer may be lost before."""
    brainstate.random.seed(0)
    own, arguments = states(), [X + i for i in range(4)]
    if aliased:  # c: another array of the same buffer
        own['b'].value = own['a'].value
        own['c'].value = jax.device_put(own['a'].value, jax.devices()[0])
        arguments[0] = own['a'].value
    jitted = jit(lambda x: function(own, x))
    results = [jitted(x) for x in arguments]
    return [*results, arguments, {name: state.value for name, state in own.items()}]


@pytest.mark.parametrize('aliased', [False, True])
@pytest.mark.parametrize('function', FUNCTIONS, ids=lambda f: f.__name__)
def test_jit_equals_brainstate(function: Any, aliased: bool) -> None:
    donating, plain = (trajectory(jit, function, aliased) for jit in (bo.jit, transform.jit))
    assert jax.tree.structure(donating) == jax.tree.structure(plain)
    for a, b in zip(jax.tree.leaves(donating), jax.tree.leaves(plain), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_array_equal(a, b)


def nested(jit: Callable[..., Any], around: Callable[[Any, Any], Any]) -> Any:
    own = states()
    step = jit(lambda x: add(own, x)['sum'])
    result = around(step, own)
    return result, {name: state.value for name, state in own.items()}


AROUND: dict[str, Callable[[Any, Any], Any]] = {
    'brainstate jit': lambda step, own: transform.jit(lambda x: step(x) + step(x))(X),
    'itself': lambda step, own: bo.jit(lambda x: step(x) + step(x))(X),
    'for_loop': lambda step, own: transform.for_loop(step, jnp.stack([X, X + 1])),
    'vmap': lambda step, own: transform.vmap(step, in_states={0: {'a': own['a']}}, out_states={0: {'a': own['a']}})(X),
    'brainstate grad': lambda step, own: transform.grad(lambda: step(X), own['b'])(),
    'no compilation': lambda step, own: disabled(step),
}


def disabled(step: Any) -> Any:
    with jax.disable_jit():
        return step(X)


@pytest.mark.parametrize('around', AROUND.values(), ids=AROUND)
def test_nested_jit_equals_brainstate(around: Any) -> None:
    donating, plain = (nested(jit, around) for jit in (bo.jit, transform.jit))
    for a, b in zip(jax.tree.leaves(donating), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)


def test_jit_under_transformations_of_jax() -> None:
    """Inside jax's own transformations, brainstate allows functions that only read States."""
    own = states()
    step = bo.jit(lambda x: jnp.sum(x**2 * own['a'].value))
    for transformed in (jax.grad(step), jax.jit(jax.grad(step))):
        np.testing.assert_array_equal(transformed(X), 2 * X * (X + 1))
    with pytest.raises(brainstate.TraceContextError):
        jax.grad(bo.jit(lambda x: add(own, x)['sum']))(X)
    np.testing.assert_array_equal(own['a'].value, X + 1)


def test_static_arguments() -> None:
    own = states()

    @bo.jit(static_argnums=1, static_argnames='how')
    def scale(x: Any, times: int, how: str = 'up') -> Any:
        own['a'].value = own['a'].value * times if how == 'up' else own['a'].value / times
        return x

    scale(X, 2)
    scale(X, 4, how='down')
    np.testing.assert_array_equal(own['a'].value, (X + 1) / 2)
    with pytest.raises(ValueError, match='negative'):
        bo.jit(static_argnums=-1)(lambda x: x)


def test_new_argument_shapes_are_traced_once() -> None:
    """The function may branch on the shape of its argument; shapes seen before are not compiled again."""
    own, traced = states(), list[Any]()

    @bo.jit(static_argnames='much')
    def add_to_one(x: Any, much: int = 1) -> Any:
        traced.append(x)
        name = 'a' if x.ndim else 'b'
        own[name].value = own[name].value + much * x
        return x

    for i, (x, much) in enumerate([(X, 1), (X, 1), (X, 2), (2.0, 1), (X, 1), (np.float32(2.0), 2), (X, 2), (2.0, 1)]):
        with compilations(0) if i in (1, 4, 6, 7) else contextlib.nullcontext():
            assert add_to_one(jnp.asarray(x), much=much).dtype == jnp.asarray(x).dtype
    assert len(traced) == 4
    np.testing.assert_array_equal(own['a'].value, X + 1 + 7 * X)
    np.testing.assert_array_equal(own['b'].value, 3 * X + 8)
    add_to_one.clear_cache()
    add_to_one(X)
    np.testing.assert_array_equal(own['a'].value, X + 1 + 8 * X)
    with pytest.raises(ValueError, match='cannot be an instance of State'):
        add_to_one(own['c'])


def test_function_whose_structure_never_repeats_falls_back_to_brainstate(monkeypatch: pytest.MonkeyPatch) -> None:
    """brainstate's jit runs the function if its States never match what was traced."""
    monkeypatch.setattr(plan, 'form', lambda value: object())
    own = states()
    jitted = bo.jit(lambda x: add(own, x))
    for _ in range(2):
        before = own['a'].value
        jitted(X)
        assert not before.is_deleted()
    np.testing.assert_array_equal(own['a'].value, X + 1 + 2 * X * X * 3)


def test_new_state_shapes_are_traced_once() -> None:
    """The function may branch on the shape of a State; shapes seen before are not compiled again."""
    own = states()

    @bo.jit
    def grow_one(x: Any) -> None:
        one = own['b' if own['a'].value.shape == (N,) else 'c']
        one.value = one.value + x
        own['a'].value = own['a'].value * 2

    for i, shape in enumerate([(N,), (2,), (2, 1), (N,), (2,)]):
        own['a'].value = jnp.asarray(np.full(shape, 1.0 * i))
        with compilations(0) if i > 2 else contextlib.nullcontext():
            grow_one(X)
        np.testing.assert_array_equal(own['a'].value, np.full(shape, 2.0 * i))
    np.testing.assert_array_equal(own['b'].value, X * 3 + 2 * X)
    np.testing.assert_array_equal(own['c'].value, X - 4 + 3 * X)


def fail_while_tracing(x: Any) -> Any:
    raise KeyError('while tracing')


def fail_while_running(x: Any) -> Any:
    def fail(_: Any) -> Any:
        raise ValueError('while running')

    return jax.pure_callback(fail, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize('fail', [fail_while_tracing, fail_while_running, lambda x: jax.jit(fail_while_running)(x)])
def test_error_inside_jit_changes_nothing(fail: Callable[..., Any]) -> None:
    own = states()

    def step(x: Any) -> None:
        own['a'].value = own['a'].value + 1
        own['b'].value = own['b'].value + fail(x)

    for _ in range(2):
        with pytest.raises((KeyError, jax.errors.JaxRuntimeError), match='while'):
            jax.block_until_ready(bo.jit(step)(X))
    for name, state in states().items():
        jax.tree.map(np.testing.assert_array_equal, own[name].value, state.value)


def test_invalid_arguments_of_jit_change_nothing() -> None:
    own = states()
    jitted = bo.jit(lambda x: add(own, x))
    for bad in ('text', own['a'], object()):
        with pytest.raises((TypeError, ValueError)):
            jitted(bad)
    with pytest.raises(TypeError, match='broadcasting'):
        jitted(jnp.ones(N + 1))
    np.testing.assert_array_equal(own['a'].value, X + 1)


def test_error_after_many_calls_is_raised_unchanged() -> None:
    own = states()

    @bo.jit
    def function(x: Any) -> None:
        if x.shape != X.shape:
            raise ValueError('another shape')
        brainstate.transform.jit_error_if(x[0] > 5, 'too much')
        own['a'].value = own['a'].value + x

    for _ in range(4):
        function(X)
    with pytest.raises(ValueError, match='another shape'):
        function(X[1:])
    with pytest.raises(Exception, match='too much'):
        function(X + 6)
    np.testing.assert_array_equal(own['a'].value, X + 1 + 4 * X)
