from __future__ import annotations

import pytest
import torch

from glm4v_ops.model.faults import is_device_lost, is_out_of_memory


def test_what_the_cpus_allocator_raises_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert is_out_of_memory(raised.value)
    assert not is_device_lost(raised.value)


@pytest.mark.parametrize(
    ("error", "full", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling cublasGemmEx"), False, True),
        (RuntimeError("CUDA driver error: device not ready"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True, False),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"), False, True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), False, True),
        (RuntimeError('!handles_.at(i) INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":435'), False, True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False, False),
        (ValueError("no CUDA picture"), False, False),
        (FloatingPointError("the model's logits are not finite"), False, False),
    ],
)
def test_a_machines_fault_is_told_from_an_images(error: Exception, full: bool, lost: bool) -> None:
    assert (is_out_of_memory(error), is_device_lost(error)) == (full, lost)
