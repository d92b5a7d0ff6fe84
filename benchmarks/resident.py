"""Run ten train steps, and print the peak resident memory of this process in bytes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import jax

from benchmarks.train import TRAIN


def peak_resident() -> int:
    """Return the peak resident memory so far; on Linux, ``getrusage`` would include that of the parent process."""
    status = Path('/proc/self/status')
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return 1024 * int(line.split()[1])
    return (1 if sys.platform == 'darwin' else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == '__main__':
    step = TRAIN[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    for _ in range(10):
        jax.block_until_ready(step())
    print(peak_resident())
