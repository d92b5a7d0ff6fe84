"""Groups of weights with options that differ, and weights without decay."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from models import FOUR_LEAVES, four_gradients, four_leaves, updated

import braintools_optim as bo
from braintools_optim import constraints


def test_groups_by_predicate_equal_groups_added_by_hand() -> None:
    options = {'a.*': {'lr': 0.3, 'betas': (0.5, 0.9)}, lambda name, w: w.ndim == 0: {'lr_scale': 0.1, 'amsgrad': True}}
    chosen = bo.Adam(bo.StepLR(0.1, 2, 0.5), grad_clip_norm=1.0, groups=options)
    by_hand = bo.Adam(bo.StepLR(0.1, 2, 0.5), grad_clip_norm=1.0)
    ours = updated(chosen)
    assert [chosen.group_names(i) for i in range(3)] == [['b.weight'], ['a.bias', 'a.weight'], ['b.tau']]
    assert list(chosen.param_groups[1]['params']) == ['a.bias', 'a.weight']
    states = {name: brainstate.ParamState(jnp.asarray(w)) for name, w in FOUR_LEAVES.items()}
    by_hand.register_trainable_weights({'b.weight': states['b.weight']})
    by_hand.add_param_group({name: states[name] for name in ('a.weight', 'a.bias')}, lr=0.3, betas=(0.5, 0.9))
    by_hand.add_param_group({'b.tau': states['b.tau']}, lr_scale=0.1, amsgrad=True)
    for t in range(4):
        by_hand.update({f'{path[0]}.{name}': g for path, own in four_gradients(t).items() for name, g in own.items()})
    for name, w in ours.items():
        np.testing.assert_allclose(w, states[name].value, rtol=1e-12, err_msg=name)


def test_first_matching_predicate_takes_the_weight() -> None:
    opt = bo.SGD(1.0, groups={'weight': {'lr_scale': 0.5}, '*': {'lr_scale': 0.0}, 'none': {}})
    with pytest.warns(UserWarning, match=r"No weight is chosen by groups\['none'\]"):
        after = updated(opt, 1)
    assert opt.group_names(0) == []
    np.testing.assert_array_equal(after['a.bias'], FOUR_LEAVES['a.bias'])
    np.testing.assert_allclose(
        after['a.weight'], np.array(FOUR_LEAVES['a.weight']) - 0.5 * four_gradients(0)['a',]['weight']
    )
    assert opt.current_lr == 1.0


def test_wrong_groups_change_nothing() -> None:
    for groups, error, match in (
        ({'a.*': {'beta': 0.5}}, TypeError, r"Unknown options of a group: \['beta'\]\. Must be among \['amsgrad', "),
        ({'a.*': {'lr': 0.1}, 'b.*': {'eps': -1.0}}, ValueError, 'Invalid eps=-1'),
    ):
        opt = bo.Adam(0.1, groups=groups)
        with pytest.raises(error, match=match):
            opt.register_trainable_weights(four_leaves())
        assert opt.opt_state is None
        assert opt.param_groups == []
        assert len(opt.param_states) == 0


def test_weight_in_two_groups_is_refused_by_both_names() -> None:
    w = brainstate.ParamState(jnp.ones(2))
    opt = bo.SGD(0.1, grad_clip_norm=1.0).register_trainable_weights({'encoder': w, 'decoder': w})
    with pytest.raises(ValueError, match='head is registered already, as encoder'):
        opt.add_param_group({'head': w})
    opt.update({'encoder': jnp.array([3.0, 4.0])})  # the weight counts once in the norm
    np.testing.assert_allclose(w.value, 1 - 0.1 * np.array([0.6, 0.8]), rtol=1e-6)


@pytest.mark.parametrize(
    ('rule', 'options'),
    [(bo.SGD, {}), (bo.AdamW, {}), (bo.Adam, {}), (bo.Lamb, {}), (bo.NAdamW, {}), (bo.OptaxOptimizer, {})],
)
def test_no_decay_equals_a_group_without_decay(rule: Any, options: dict[str, Any]) -> None:
    masked = updated(rule(0.1, weight_decay=0.5, no_decay=bo.usual_exclusions) if rule is not bo.OptaxOptimizer
                 else rule(lr=0.1, weight_decay=0.5, no_decay=bo.usual_exclusions))  # fmt: skip
    groups = {bo.usual_exclusions: {'weight_decay': 0.0}}
    grouped = updated(rule(lr=0.1, weight_decay=0.5, groups=groups))
    decayed = updated(rule(lr=0.1, weight_decay=0.5))
    for name, w in masked.items():
        np.testing.assert_allclose(w, grouped[name], rtol=1e-12, err_msg=name)
        assert (w == decayed[name]).all() == (name in ('a.weight', 'b.weight')), name


def test_usual_exclusions() -> None:
    square = jnp.ones((2, 2))
    for name in ('norm.weight', 'layers.0.bias', 'tau', 'cell.tau_m', 'cell.V_th', 'cell.threshold', 'bn.scale'):
        assert bo.usual_exclusions(name, square), name
    for name in ('layers.0.weight', 'normal.weight', 'biased', 'recurrent.tauto'):
        assert not bo.usual_exclusions(name, square), name
    assert bo.usual_exclusions('w', jnp.ones(3))


def test_str_lists_groups_and_their_options() -> None:
    opt = bo.AdamW(0.01, weight_decay=0.1, no_decay='tau', constraints={'b.*': constraints.non_negative()},
                   groups={'bias': {'lr': 0.001}, 'tau': {'betas': (0.5, 0.9), 'lr_scale': 0.1}})  # fmt: skip
    assert str(opt) == 'AdamW: lr 0.01 (ConstantLR), no weights registered'
    opt.freeze('a.weight')
    opt.register_trainable_weights(four_leaves())
    head, *table = str(opt).splitlines()
    assert head == 'AdamW: lr 0.01 (ConstantLR)'
    assert table == [
        'group  lr     weights             parameters  own options                     frozen  not decayed'
        '  constrained',
        '0      0.01   a.weight, b.weight  6                                           1 of 2               1 of 2',
        '1      0.001  a.bias              2           lr=0.001',
        '2      0.001  b.tau               1           betas=(0.5, 0.9), lr_scale=0.1          1 of 1       1 of 1',
    ]


def one_weight(optimizer: bo.Optimizer, start: float = 0.0) -> brainstate.ParamState:
    w = brainstate.ParamState(jnp.asarray(start))
    optimizer.register_trainable_weights({'w': w})
    return w


def test_groups_have_their_own_options_and_one_schedule() -> None:
    schedule = bo.StepLR(0.1, 1, 0.5)
    opt = bo.SGD(schedule, momentum=0.5)
    a, b, c = (brainstate.ParamState(jnp.asarray(1.0)) for _ in range(3))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b}, lr=1.0, momentum=0.0, weight_decay=0.5)
    opt.add_param_group({'c': c}, lr_scale=3.0)
    ones = {'a': jnp.asarray(1.0), 'b': jnp.asarray(1.0), 'c': jnp.asarray(1.0)}
    opt.update(ones)
    np.testing.assert_allclose([a.value, b.value, c.value], [0.9, -0.5, 0.7])
    schedule.step()
    opt.update(ones)
    np.testing.assert_allclose([a.value, b.value, c.value], [0.9 - 0.05 * 1.5, -0.5 - 0.5 * 0.75, 0.7 - 0.15 * 1.5])
    assert opt.get_last_lr() == [0.05, 0.5, pytest.approx(0.15)]
    assert [g['momentum'] for g in opt.param_groups] == [0.5, 0.0, 0.5]
    opt.momentum = 0.25  # of the groups without an own momentum
    assert [g['momentum'] for g in opt.param_groups] == [0.25, 0.0, 0.25]
    opt.param_groups[1]['weight_decay'] = 0.0
    opt.param_groups[2]['lr'].value = 1.0
    before = [float(x.value) for x in (a, b, c)]
    opt.update({'a': jnp.asarray(0.0), 'b': jnp.asarray(1.0), 'c': jnp.asarray(1.0)})
    np.testing.assert_allclose(float(b.value) - before[1], -0.5)
    np.testing.assert_allclose(float(c.value) - before[2], -(1 + 0.25 * 1.5))


def test_base_rates_of_groups_in_order() -> None:
    opt = bo.SGD(bo.StepLR([0.1, 0.2], 1, 0.5))
    a, b = (brainstate.ParamState(jnp.asarray(0.0)) for _ in range(2))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b})
    opt.lr.step()
    opt.update({'a': jnp.asarray(1.0), 'b': jnp.asarray(1.0)})
    np.testing.assert_allclose([a.value, b.value], [-0.05, -0.1])
    assert opt.lr.current_lrs.value == opt.get_last_lr() == [0.05, 0.1]


def test_param_groups_read_as_in_torch_and_braintools() -> None:
    opt = bo.Adam(0.1)
    one_weight(opt)
    (group,) = opt.param_groups
    assert group['lr'].value == 0.1
    assert {'params', 'lr', 'weight_decay', 'betas'} <= set(group)
    group['lr'] = 0.2
    assert opt.current_lr == float(opt.lr) == group['lr'].value == 0.2
    assert 'betas=(0.9, 0.999)' in repr(group)
    assert repr(opt).startswith('Adam(lr=ConstantLR(')
    with pytest.raises(TypeError, match='cannot be deleted'):
        del group['lr']
    with pytest.raises(KeyError, match='fixed'):
        group['params'] = {}


def test_group_option_replaces_a_scheduled_default() -> None:
    opt = bo.SGD(0.1, weight_decay=lambda count: 1.0 + 0 * count)
    a, b = (brainstate.ParamState(jnp.asarray(1.0)) for _ in range(2))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b})
    zero = {'a': jnp.asarray(0.0), 'b': jnp.asarray(0.0)}
    update = brainstate.transform.jit(lambda: opt.update(zero))
    for run in (lambda: opt.update(zero), update):
        run()
    b.value = jnp.asarray(1.0)
    opt.param_groups[1]['weight_decay'] = 5.0
    for expected, run in ((0.5, lambda: opt.update(zero)), (0.25, update)):
        run()
        np.testing.assert_allclose(b.value, expected)


def test_pattern_without_a_match_warns() -> None:
    for options, match in (
        ({'constraints': {'weights': constraints.non_negative()}}, r"No weight is chosen by constraints\['weights'\]"),
        ({'no_decay': 'biases'}, "No weight is chosen by no_decay='biases'"),
        ({'groups': {'biases': {}}}, r"No weight is chosen by groups\['biases'\]"),
    ):
        with pytest.warns(UserWarning, match=match):
            bo.Adam(0.1, **options).register_trainable_weights({'w': brainstate.ParamState(jnp.ones(2))})
