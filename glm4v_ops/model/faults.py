"""Whose fault an exception from torch is: the machine's, or that of what the model was given.

A machine's fault must never become the outcome of an image. Knows exceptions only, not what was being done.
"""

from __future__ import annotations

import re

import torch

#: The CPU's allocator, and CUDA's libraries, raise a bare RuntimeError. cuDNN that finds no room says that it finds no
#: engine or algorithm.
_FULL = re.compile(
    r"can't allocate memory|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED"
    r"|unable to find an engine to execute|Unable to find a valid cuDNN algorithm"
)
_LOST = re.compile(r"CUDA (?:driver )?error|CU(?:BLAS|DNN)_STATUS_|Triton Error \[CUDA\]|CUDACachingAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no room: less work at once may fit."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or bool(_FULL.search(str(error)))


def is_device_lost(error: BaseException) -> bool:
    """Whether the device failed: nothing in this process can use it again."""
    failed = isinstance(error, torch.AcceleratorError) or bool(_LOST.search(str(error)))
    return failed and not is_out_of_memory(error)
