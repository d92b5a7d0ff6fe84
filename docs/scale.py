"""Write the tables of memory and communication at scale (``python -m benchmarks.scale``)."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report import scale_tables


def write(folder: Path) -> None:
    """Write ``folder/gallery/scale.md``."""
    result = json.loads((folder.parent / 'benchmarks' / 'results' / 'scale.json').read_text())
    (folder / 'gallery').mkdir(exist_ok=True)
    (folder / 'gallery' / 'scale.md').write_text('\n'.join(scale_tables(result)))
