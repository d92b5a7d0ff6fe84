"""Learning rate schedules: pure functions of the epoch."""

from braintools_optim.schedulers.annealing import SWALR, CosineAnnealingLR, CosineAnnealingWarmRestarts
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.schedulers.composite import ChainedScheduler, PerUpdate, SequentialLR
from braintools_optim.schedulers.cyclic import CyclicLR, OneCycleLR
from braintools_optim.schedulers.decay import (
    ConstantLR,
    ExponentialDecayLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PiecewiseConstantSchedule,
    PolynomialLR,
    StepLR,
)
from braintools_optim.schedulers.function import OptaxSchedule
from braintools_optim.schedulers.plateau import ReduceLROnPlateau
from braintools_optim.schedulers.warmup import (
    InverseSquareRootLR,
    WarmupCosineSchedule,
    WarmupScheduler,
    WarmupStableDecay,
)

__all__ = [
    'SWALR',
    'ChainedScheduler',
    'ConstantLR',
    'CosineAnnealingLR',
    'CosineAnnealingWarmRestarts',
    'CyclicLR',
    'ExponentialDecayLR',
    'ExponentialLR',
    'InverseSquareRootLR',
    'LRScheduler',
    'LambdaLR',
    'LinearLR',
    'MultiStepLR',
    'MultiplicativeLR',
    'OneCycleLR',
    'OptaxSchedule',
    'PerUpdate',
    'PiecewiseConstantSchedule',
    'PolynomialLR',
    'ReduceLROnPlateau',
    'SequentialLR',
    'StepLR',
    'WarmupCosineSchedule',
    'WarmupScheduler',
    'WarmupStableDecay',
]
