"""`python -m glm4v_ops` with the engine of `tests/shards.py`: for what only a process of its own can show.

GLM4V_TEST_HANG_AT=N: at the picture with number N the model says so on stderr and takes for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from glm4v_ops import answers, cli
from tests.shards import PixelEngine


def before(numbers: list[int]) -> None:
    if int(os.environ.get("GLM4V_TEST_HANG_AT", "-1")) in numbers:
        print("hanging", file=sys.stderr, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    # A shell that starts us in the background has Ctrl-C ignored, and Python leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    answers.load_engine = lambda recipe, base, device="auto": PixelEngine(recipe, before)
    sys.exit(cli.main())
