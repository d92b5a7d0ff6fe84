"""The greatest resident memory of this process in bytes after ten train steps, which is all that it does."""

from __future__ import annotations

import resource
import sys

import jax

from benchmarks.train import TRAIN

if __name__ == '__main__':
    step = TRAIN[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    for _ in range(10):
        jax.block_until_ready(step())
    unit = 1 if sys.platform == 'darwin' else 1024
    print(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
