"""Stateful optimizers for brainstate models in JAX."""

from braintools_optim import schedulers
from braintools_optim.clipping import global_norm
from braintools_optim.optax_optimizer import OptaxOptimizer, to_optax
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Decay, Hyperparameters
from braintools_optim.rule import Rule
from braintools_optim.rules import SGD, Adam, AdamW, Momentum, MomentumNesterov, RAdam, RMSprop
from braintools_optim.schedulers import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LRScheduler,
    OptaxSchedule,
    StepLR,
    WarmupScheduler,
)
from braintools_optim.settings import OptimState
from braintools_optim.weights import UniqueStateManager

__version__ = '0.1.0'

__all__ = [
    'SGD',
    'Adam',
    'AdamW',
    'ConstantLR',
    'CosineAnnealingLR',
    'Decay',
    'ExponentialLR',
    'Hyperparameters',
    'LRScheduler',
    'Momentum',
    'MomentumNesterov',
    'OptaxOptimizer',
    'OptaxSchedule',
    'OptimState',
    'Optimizer',
    'RAdam',
    'RMSprop',
    'Rule',
    'StepLR',
    'UniqueStateManager',
    'WarmupScheduler',
    'global_norm',
    'schedulers',
    'to_optax',
]
