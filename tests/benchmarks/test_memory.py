from __future__ import annotations

import json
import subprocess
import sys

from demo.stack import ROOT

PROGRAM = """
import json
from benchmarks.memory import peak_mb
before = peak_mb()
taken = b"x" * 100_000_000
full = peak_mb()
del taken
print(json.dumps([before, full, peak_mb()]))
"""


def test_the_peak_is_in_megabytes_stays_and_is_not_the_parents() -> None:
    parents = b"x" * 300_000_000
    said = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    del parents
    before, full, after = json.loads(said)
    assert 0 < before < 100
    assert 99 < full - before < 110
    assert abs(after - full) < 2  # the kernel counts pages in batches
