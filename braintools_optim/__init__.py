"""Stateful optimizers for brainstate models in JAX."""

from braintools_optim import schedulers
from braintools_optim.clipping import global_norm
from braintools_optim.optax_optimizer import OptaxOptimizer, to_optax
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Decay, Hyperparameters
from braintools_optim.rule import Rule
from braintools_optim.rules import SGD, Adam, AdamW, Momentum, MomentumNesterov, RAdam, RMSprop
from braintools_optim.schedulers import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialDecayLR,
    ExponentialLR,
    InverseSquareRootLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    OptaxSchedule,
    PerUpdate,
    PiecewiseConstantSchedule,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
    WarmupCosineSchedule,
    WarmupScheduler,
    WarmupStableDecay,
)
from braintools_optim.settings import OptimState
from braintools_optim.weights import UniqueStateManager

__version__ = '0.1.0'

__all__ = [
    'SGD',
    'Adam',
    'AdamW',
    'ChainedScheduler',
    'ConstantLR',
    'CosineAnnealingLR',
    'CosineAnnealingWarmRestarts',
    'CyclicLR',
    'Decay',
    'ExponentialDecayLR',
    'ExponentialLR',
    'Hyperparameters',
    'InverseSquareRootLR',
    'LRScheduler',
    'LambdaLR',
    'LinearLR',
    'Momentum',
    'MomentumNesterov',
    'MultiStepLR',
    'MultiplicativeLR',
    'OneCycleLR',
    'OptaxOptimizer',
    'OptaxSchedule',
    'OptimState',
    'Optimizer',
    'PerUpdate',
    'PiecewiseConstantSchedule',
    'PolynomialLR',
    'RAdam',
    'RMSprop',
    'ReduceLROnPlateau',
    'Rule',
    'SequentialLR',
    'StepLR',
    'UniqueStateManager',
    'WarmupCosineSchedule',
    'WarmupScheduler',
    'WarmupStableDecay',
    'global_norm',
    'schedulers',
    'to_optax',
]
