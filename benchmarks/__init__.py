"""Measurements of speed and memory, each a ratio against something run in the same process."""
