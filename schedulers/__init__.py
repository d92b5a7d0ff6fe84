"""Learning rate schedules: pure functions of the epoch with one counter."""

from braintools_optim.schedulers.annealing import CosineAnnealingLR
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.schedulers.decay import ConstantLR, ExponentialLR, StepLR
from braintools_optim.schedulers.function import OptaxSchedule
from braintools_optim.schedulers.warmup import WarmupScheduler

__all__ = [
    'ConstantLR',
    'CosineAnnealingLR',
    'ExponentialLR',
    'LRScheduler',
    'OptaxSchedule',
    'StepLR',
    'WarmupScheduler',
]
