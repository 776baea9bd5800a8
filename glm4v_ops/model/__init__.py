"""Pixels to words: the model families, their loading, prompts and engine. Importing this imports nothing heavy."""

import os

# Read when torch loads its OpenMP, so it stands here, before anything below imports torch. Idle threads that spin take
# the cores from whatever else runs: beside other busy processes the engine on a CPU was five times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
