"""Run by test_fused.py with TRITON_INTERPRET=1: every Triton kernel against its reference, float32 and bfloat16.

Prints how many cases agreed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from vgen.ops import reference, triton_kernels

spec = importlib.util.spec_from_file_location("cases", Path(__file__).with_name("test_fused.py"))
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)

checked = 0
for name, calls in cases.CASES.items():
    for call in calls:
        expected = getattr(reference, name)(*call)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 2**-7)):
            angles = name == "norm_rotate"
            given = [
                value.to(dtype) if isinstance(value, torch.Tensor) and not (angles and index in (2, 3)) else value
                for index, value in enumerate(call)
            ]
            if dtype != torch.float32:  # against the reference in float32 of the same rounded inputs
                exact = [value.float() if isinstance(value, torch.Tensor) else value for value in given]
                expected = getattr(reference, name)(*exact)
                expected = expected if isinstance(expected, tuple) else (expected,)
            found = getattr(triton_kernels, name)(*given)
            found = found if isinstance(found, tuple) else (found,)
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == dtype and one.shape == other.shape
                torch.testing.assert_close(one.float(), other.float(), atol=tolerance, rtol=tolerance)
            checked += 1
print(checked)
