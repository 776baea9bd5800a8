"""Whose fault an exception from torch is: the machine's, or that of what the model was given.

A machine's fault must never become the outcome of an image. Knows exceptions only, not what was being done.
"""

from __future__ import annotations

import re

import torch

#: The CPU's allocator, and CUDA's libraries, raise a bare RuntimeError.
_FULL = re.compile(r"can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED")
_LOST = re.compile(r"CUDA (?:driver )?error")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no room: less work at once may fit."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or bool(_FULL.search(str(error)))


def is_device_lost(error: BaseException) -> bool:
    """Whether the device failed: nothing in this process can use it again."""
    failed = isinstance(error, torch.AcceleratorError) or bool(_LOST.search(str(error)))
    return failed and not is_out_of_memory(error)
