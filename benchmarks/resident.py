"""The greatest resident memory of this process in bytes after ten train steps, which is all that it does."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import jax

from benchmarks.train import TRAIN


def greatest() -> int:
    """The greatest resident memory so far; what Linux reports of resources counts the parent's, too."""
    status = Path('/proc/self/status')
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return 1024 * int(line.split()[1])
    return (1 if sys.platform == 'darwin' else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == '__main__':
    step = TRAIN[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    for _ in range(10):
        jax.block_until_ready(step())
    print(greatest())
