"""Frozen weights."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations
from helpers import registered
from internals import slots_of, update_counts
from models import four_gradients, four_leaves, values_by_name

import braintools_optim as bo

RULES = [bo.SGD, bo.Momentum, bo.Adam, bo.AdamW, bo.Lamb, bo.Lion, bo.Adafactor, bo.OptaxOptimizer, bo.LBFGS]
every_rule = pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)


@every_rule
def test_frozen_weights_do_not_influence_the_others(rule: type[bo.Optimizer]) -> None:
    options = {'lr': 0.1, 'grad_clip_norm': 0.5} | ({} if rule is bo.LBFGS else {'weight_decay': 0.1})
    states, alone = four_leaves(), four_leaves()
    frozen = rule(**options)
    frozen.freeze('b.*')
    frozen.register_trainable_weights(states)
    only = rule(**options).register_trainable_weights({('a',): alone['a',]})
    for t in range(4):
        frozen.update(
            four_gradients(t) if t % 2 else {('a',): four_gradients(t)['a',]}
        )  # gradients of frozen weights are optional
        only.update({('a',): four_gradients(t)['a',]})
    assert values_by_name(states)['b.tau'] == 5.0
    for name in ('a.weight', 'a.bias'):
        np.testing.assert_allclose(values_by_name(states)[name], values_by_name(alone)[name], rtol=1e-12, err_msg=name)
    assert all('b.tau' not in leaves for leaves in slots_of(frozen).values())


def test_freezing_acts_in_compiled_functions_and_keeps_slots() -> None:
    states = four_leaves()
    opt = bo.Adam(0.1).register_trainable_weights(states)
    update = brainstate.transform.jit(lambda g: opt.update(g))
    g = four_gradients(0)
    update(g)
    opt.freeze('tau')
    update(g)
    before, held = values_by_name(states), np.array(opt.opt_state.value['exp_avg']['b.tau'])
    with compilations(0):
        update(g)
    assert values_by_name(states)['b.tau'] == before['b.tau']
    assert (values_by_name(states)['a.bias'] != before['a.bias']).all()
    opt.unfreeze('tau')
    with compilations(0):  # compiled before
        update(g)
    assert values_by_name(states)['b.tau'] != before['b.tau']
    assert update_counts(opt)['b.tau'] == 2
    np.testing.assert_allclose(opt.opt_state.value['exp_avg']['b.tau'], 0.9 * held + 0.1 * g['b',]['tau'])


def test_slots_of_frozen_weights_begin_when_unfrozen() -> None:
    opt = bo.Adam(0.1)
    opt.freeze('a.weight')
    opt.unfreeze('a.*')
    opt.freeze(lambda name, w: w.ndim == 1)
    opt.register_trainable_weights(four_leaves())
    assert slots_of(opt)['exp_avg'].keys() == {'a.weight', 'b.weight', 'b.tau'}
    opt.update(four_gradients(0))
    opt.unfreeze('bias')
    opt.update(four_gradients(1))
    assert update_counts(opt)['a.bias'] == 1
    opt.freeze('bias')
    assert 'a.bias' in slots_of(opt)['exp_avg']  # its slots are kept
    with pytest.raises(ValueError, match=r"No weight is chosen by 'biases'\. There are: a\.bias, a\.weight"):
        opt.freeze('biases')
    with pytest.raises(ValueError, match='inside a transformation'):
        brainstate.transform.jit(lambda: opt.freeze('bias'))()


def test_frozen_first_weight_does_not_stop_the_update_count() -> None:
    """The count of the group goes on while its first weight is frozen."""
    hessian = {'b': jnp.ones(2)}
    for rule, options in ((bo.Prodigy, {'d0': 0.1, 'use_bias_correction': True}), (bo.Sophia, {'update_period': 3})):
        paths = []
        for frozen in (True, False):
            optimizer = rule(**options)
            w = registered(optimizer, **({'a': np.ones(2)} if frozen else {}), b=np.ones(2))
            if frozen:
                optimizer.freeze('a')
            for t in range(5):
                told = {'hessian': hessian | ({'a': jnp.ones(2)} if frozen else {})} if rule is bo.Sophia else {}
                optimizer.update({'b': jnp.array([1.0, t])}, **told)
            paths.append(np.array(w['b'].value))
        np.testing.assert_array_equal(*paths)
