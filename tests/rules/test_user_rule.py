"""An optimizer written by a user."""

from __future__ import annotations

from typing import Any, Literal

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo
from braintools_optim.options import Fraction, NonNegative, WeightDecay


def test_user_defined_rule() -> None:
    class SignMomentum(bo.Optimizer):
        momentum: Fraction = 0.9
        weight_decay: WeightDecay = 0.0

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


def test_a_rule_derived_from_sgd_reads_a_momentum_of_zero_as_a_number() -> None:
    class Scaled(bo.SGD):
        def direction(self, g: Any, w: Any, slots: Any, hp: Any) -> Any:
            direction, new = super().direction(g, w, slots, hp)
            return (2 - hp.momentum) * direction, new

    w = brainstate.ParamState(jnp.zeros(2))
    Scaled(lr=0.5).register_trainable_weights({'w': w}).update({'w': jnp.array([1.0, -1.0])})
    np.testing.assert_array_equal(w.value, [-1.0, 1.0])


class AnyNames(bo.Optimizer):
    """Options and slots with the names of the pipeline's values."""

    factor: NonNegative = 2.0
    decay: NonNegative = 3.0
    guard: bool = True
    finite: NonNegative = 5.0
    changes_only: bool = True
    place: NonNegative = 7.0
    values: NonNegative = 11.0
    flatten: NonNegative = 13.0
    index: NonNegative = 17.0
    tree: NonNegative = 19.0
    NAMES = ('step', 'skipped', 'tree', 'constraint', 'eval_weights', 'master', 'grokfast', 'slots', 'groups', 'values')

    def init_slots(self, w: Any, hp: Any) -> Any:
        return {name: jnp.full_like(w, i) for i, name in enumerate(self.NAMES)}

    def direction(self, g: Any, w: Any, slots: Any, hp: Any) -> Any:
        total = hp.factor + hp.decay + hp.finite + hp.place + hp.values + hp.flatten + hp.index + hp.tree
        return total * g * hp.guard * hp.changes_only, {name: x + hp.step for name, x in slots.items()}


@pytest.mark.parametrize('many', [False, True])
def test_options_and_slots_may_have_any_name(many: bool, tmp_path: Any) -> None:
    def build() -> tuple[bo.Optimizer, dict[str, brainstate.ParamState]]:
        weights = {f'w{i}': brainstate.ParamState(jnp.ones(2, jnp.float16)) for i in range(9 if many else 1)}
        keep = {'constraints': {'w*': bo.constraints.box(-1e3, 1e3)}, 'master_weights': True, 'grokfast': 1e-6}
        return AnyNames(lr=0.5, grad_clip_norm=1e6, **keep).register_trainable_weights(weights), weights

    optimizer, weights = build()
    for _ in range(2):
        optimizer.update({name: jnp.ones(2, jnp.float16) for name in weights})
    np.testing.assert_allclose(weights['w0'].value, 1 - 2 * 0.5 * 77)
    for i, name in enumerate(AnyNames.NAMES):
        np.testing.assert_array_equal(optimizer.opt_state.value.slots[name]['w0'], i + 3)
    optimizer.save(tmp_path / 'state.npz')
    again, _ = build()
    again.load(tmp_path / 'state.npz')
    for name in AnyNames.NAMES:
        np.testing.assert_array_equal(*(o.opt_state.value.slots[name]['w0'] for o in (optimizer, again)))
    assert again.opt_state.value.step.tolist() == [2] * len(weights)


@pytest.mark.parametrize('name', ['update', 'settings', 'opt_state', 'load'])
def test_option_with_the_name_of_a_method_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f'Invalid option {name} of Wrong'):
        type('Wrong', (bo.SGD,), {'__annotations__': {name: float}, name: 0.5, '__module__': __name__})


def test_option_without_a_kind_is_refused() -> None:
    with pytest.raises(TypeError, match='The option table of Wrong has the annotation'):
        type('Wrong', (bo.SGD,), {'__annotations__': {'table': dict}, 'table': {}, '__module__': __name__})


def test_plain_annotations_are_kinds() -> None:
    class Plain(bo.SGD):
        gain: float = 1.0
        count: int = 2
        mode: Literal['a', 'b'] = 'a'
        pair: tuple[float, float] = (0.0, 1.0)
        limit: float | None = None

    assert (Plain(count=3).count, Plain(mode='b').mode, Plain(pair=[1, 2]).pair) == (3, 'b', (1, 2))
    for options, match in (
        ({'gain': 'x'}, "Invalid gain='x'. Must be a number"),
        ({'count': 0.5}, 'Invalid count=0.5. Must be an integer'),
        ({'mode': 'c'}, r"Invalid mode='c'. Must be one of \('a', 'b'\)"),
        ({'pair': 1.0}, 'Invalid pair=1.0. Must be a pair of numbers'),
        ({'limit': 'x'}, "Invalid limit='x'"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            Plain(**options)


def test_subclass_attributes() -> None:
    """A subclass sets attributes in its constructor, and names that begin with an underscore at any time."""

    class Own(bo.SGD):
        def __init__(self, speed: float):
            self.before = speed
            super().__init__(lr=speed)
            self.after = [speed]

    optimizer = Own(0.5)
    optimizer.after, optimizer.before, optimizer._note = [1.0], 2.0, 'mine'
    optimizer.donate_weights = True
    with pytest.raises(AttributeError, match=r'Invalid befor=2\.0\. Own has no such option'):
        optimizer.befor = 2.0
    copy = brainstate.graph.treefy_merge(*brainstate.graph.treefy_split(optimizer))
    assert (copy.after, copy.before, copy.current_lr) == ([1.0], 2.0, 0.5)
