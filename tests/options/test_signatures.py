"""Signatures of constructors."""

from __future__ import annotations

import inspect

import brainstate
import jax.numpy as jnp
import pytest
from tables.optimizers import COMMON

import braintools_optim as bo
from braintools_optim import rules

every_optimizer = pytest.mark.parametrize('optimizer', COMMON, ids=lambda o: o.__name__)


def one_weight(optimizer: bo.Optimizer, start: float = 0.0) -> brainstate.ParamState:
    w = brainstate.ParamState(jnp.asarray(start))
    optimizer.register_trainable_weights({'w': w})
    return w


@every_optimizer
def test_signature_lists_the_options(optimizer: type[bo.Optimizer]) -> None:
    parameters = inspect.signature(optimizer).parameters
    assert next(iter(parameters)) in ('lr', 'tx')
    assert 'grad_clip_norm' in parameters
    assert inspect.signature(bo.StepLR).parameters['step_size'].default == 30


def test_positional_order_of_common_optimizers_and_schedules() -> None:
    for cls, arguments in {
        bo.OptaxOptimizer: 'tx lr weight_decay grad_clip_norm grad_clip_value',
        bo.SGD: 'lr momentum weight_decay nesterov grad_clip_norm grad_clip_value',
        bo.Momentum: 'lr momentum weight_decay grad_clip_norm grad_clip_value',
        bo.MomentumNesterov: 'lr momentum weight_decay grad_clip_norm grad_clip_value',
        bo.Adam: 'lr betas eps weight_decay amsgrad grad_clip_norm grad_clip_value',
        bo.AdamW: 'lr betas eps weight_decay grad_clip_norm grad_clip_value',
        bo.RAdam: 'lr betas eps weight_decay grad_clip_norm grad_clip_value',
        bo.RMSprop: 'lr alpha eps weight_decay momentum centered grad_clip_norm grad_clip_value',
        bo.ConstantLR: 'base_lr factor total_iters last_epoch',
        bo.StepLR: 'base_lr step_size gamma last_epoch',
        bo.ExponentialLR: 'base_lr gamma last_epoch',
        bo.CosineAnnealingLR: 'base_lr T_max eta_min last_epoch',
        bo.WarmupScheduler: 'base_lr warmup_epochs warmup_start_lr last_epoch',
    }.items():
        positional = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == arguments.split()


def test_every_update_takes_the_loss() -> None:
    for opt in (bo.Adam(0.1), bo.OptaxOptimizer(lr=0.1), bo.LBFGS()):
        w = one_weight(opt, 1.0)
        opt.step({'w': jnp.asarray(0.5)}, value=jnp.asarray(1.0), value_fn=lambda params: params['w'] ** 2)
        assert w.value != 1.0
    with pytest.raises(TypeError, match='values'):
        bo.Adam(0.1).update({}, values=1.0)


def test_positional_order_and_defaults_of_other_optimizers() -> None:
    for name, arguments in {
        'Adagrad': 'lr lr_decay weight_decay initial_accumulator_value eps',
        'Adadelta': 'lr rho eps weight_decay',
        'Adamax': 'lr betas eps weight_decay',
        'Nadam': 'lr betas eps weight_decay momentum_decay',
        'Lamb': 'lr betas eps weight_decay',
        'Lars': 'lr momentum weight_decay trust_coefficient eps',
        'Yogi': 'lr betas eps weight_decay',
        'Rprop': 'lr etas step_sizes',
        'Adafactor': 'lr eps clip_threshold decay_rate beta1 weight_decay factored',
        'AdaBelief': 'lr betas eps weight_decay',
        'Lion': 'lr betas weight_decay',
        'SM3': 'lr momentum eps weight_decay',
        'Novograd': 'lr betas eps weight_decay',
        'Fromage': 'lr momentum',
    }.items():
        parameters = inspect.signature(getattr(rules, name)).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == [*arguments.split(), 'grad_clip_norm', 'grad_clip_value']
        optimizer = getattr(rules, name)()
        given = {p.name: p.default for p in parameters if p.name not in ('lr', 'relative_step', 'metrics', 'eps_root')}
        assert {option: getattr(optimizer, option) for option in given} == given
