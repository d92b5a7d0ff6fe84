"""Saving: checkpoints of optimizers, and optimizer states of torch, optax and braintools."""
