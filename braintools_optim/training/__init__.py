"""Whole runs of training: sweeps over options, and the test of a range of learning rates."""
