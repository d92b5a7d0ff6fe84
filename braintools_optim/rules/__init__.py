"""The algorithms, a file a family."""

from braintools_optim.rules.adam import Adam, AdamW, RAdam
from braintools_optim.rules.rmsprop import RMSprop
from braintools_optim.rules.sgd import SGD, Momentum, MomentumNesterov

__all__ = ['SGD', 'Adam', 'AdamW', 'Momentum', 'MomentumNesterov', 'RAdam', 'RMSprop']
