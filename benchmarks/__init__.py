"""Benchmarks of speed and memory use, always alongside a peer that is measured in the same process."""
