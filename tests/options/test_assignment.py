"""Reading and assigning options."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from one_weight import moved, one_weight

import braintools_optim as bo


def test_options_are_attributes_and_keep_their_value() -> None:
    opt = bo.Adam(1e-3, (0.8, 0.99), 1e-16, 0.3, True, 1.0)
    assert (opt.betas, opt.eps, opt.weight_decay, opt.amsgrad) == ((0.8, 0.99), 1e-16, 0.3, True)
    assert (opt.grad_clip_norm, opt.grad_clip_value, opt.base_lr) == (1.0, None, 1e-3)
    assert not hasattr(bo.RAdam(), 'momentum_decay')
    with pytest.warns(DeprecationWarning, match='beta1'):
        assert bo.Adam(beta1=0.7).betas == (0.7, 0.999)
    with pytest.warns(DeprecationWarning, match='beta2'):
        assert bo.Adam(beta2=0.7).betas == (0.9, 0.7)


@pytest.mark.usefixtures('float32')
def test_options_keep_their_value_in_float32() -> None:
    opt = bo.Adam(0.1, (0.9, 0.999), weight_decay=0.3)
    assert (opt.betas, opt.eps, opt.weight_decay) == ((0.9, 0.999), 1e-8, 0.3)
    assert opt.current_lr == opt.base_lr == float(opt.lr) == 0.1
    opt.lr_apply(lambda lr: lr * 0.5)
    assert opt.current_lr == 0.05


ASSIGNMENTS = [
    (bo.Adam, {'amsgrad': True}, {'betas': (0.5, 0.6), 'eps': 0.1, 'weight_decay': 0.2, 'maximize': True}),
    (bo.Adam, {}, {'decoupled_weight_decay': True, 'grad_clip_norm': 0.01, 'grad_clip_value': 0.001}),
    (bo.RMSprop, {'momentum': 0.5, 'centered': True}, {'alpha': 0.5, 'momentum': 0.9, 'eps': 0.3}),
    (bo.SGD, {'momentum': 0.9}, {'momentum': 0.5, 'nesterov': True}),
    (bo.SGD, {'momentum': 0.9}, {'dampening': 0.5, 'weight_decay': 0.5}),
    (bo.OptaxOptimizer, {}, {'weight_decay': 0.5, 'maximize': True}),
]


@pytest.mark.parametrize(('cls', 'options', 'assigned'), ASSIGNMENTS)
def test_assigning_acts_on_the_next_update(cls: Any, options: dict[str, Any], assigned: dict[str, Any]) -> None:
    """Each assigned option changes the next update, also in a function compiled before."""
    slopes = (0.7, -0.2, 0.5)

    def run(change: dict[str, Any], jitted: bool) -> list[float]:
        opt = cls(lr=0.1, **options)
        w = one_weight(opt, 1.0)
        update = brainstate.transform.jit(lambda g: opt.update({'w': g})) if jitted else lambda g: opt.update({'w': g})
        path = []
        for t, slope in enumerate(slopes):
            if t == 1:
                for name, value in change.items():
                    setattr(opt, name, value)
                    assert getattr(opt, name) == opt.param_groups[0][name] if 'clip' not in name else True
            update(jnp.asarray(slope))
            path.append(float(w.value))
        return path

    plain = run({}, False)
    for name, value in assigned.items():
        needed = {'weight_decay': 0.4} if name == 'decoupled_weight_decay' else {}
        eager, compiled = run({**needed, name: value}, False), run({**needed, name: value}, True)
        np.testing.assert_allclose(eager, compiled, rtol=1e-9)
        assert eager[0] == plain[0]
        assert abs(eager[1] - (run(needed, False) if needed else plain)[1]) > 1e-6, name


def test_assignment_that_changes_the_slots_is_refused() -> None:
    opt = bo.SGD(0.1)
    w = one_weight(opt)
    with pytest.raises(ValueError, match=r"{'momentum': 0\.9} cannot be .* would begin as \['momentum_buffer'\]"):
        opt.momentum = 0.9
    assert opt.momentum == 0.0
    with pytest.raises(ValueError, match='Invalid weight_decay'):
        opt.weight_decay = -1.0
    with pytest.raises(ValueError, match='Invalid nesterov=True with momentum'):
        opt.nesterov = True
    with pytest.raises(KeyError, match='is no option'):
        opt.param_groups[0]['eps'] = 1.0
    assert moved(opt, w) == 0.1
    for other, name, value in [
        (bo.Adagrad(0.1), 'initial_accumulator_value', 0.5),
        (bo.Adafactor(0.1), 'factored', False),
        (bo.Lamb(0.1), 'decoupled_weight_decay', True),
    ]:
        one_weight(other)
        with pytest.raises(ValueError, match=name):
            setattr(other, name, value)
    bo.SGD(0.1).momentum = 0.5  # allowed before registration
