"""The gate before timing: arms that do not compute the same thing are not compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vgen.bench.arms import Arm
from vgen.diffusion.tokens import pack
from vgen.errors import RequestError

TOLERANCE = 1e-5
"""Largest difference of float32 arms in a transformer step and in decoded pixels, of values about 1."""
LOOP_TOLERANCE = 1e-4
"""The same after a whole denoising loop, whose steps carry rounding on."""
ALLOWED = 1.1
"""Our error in half precision over the peer's own, both against float32."""
_STAGES = {"step": TOLERANCE, "decode": TOLERANCE, "denoise": LOOP_TOLERANCE}


class ParityError(RequestError):
    """Two arms do not give the same result, so their times must not be compared."""


def check_parity(arms: Sequence[Arm]) -> dict[str, Any]:
    """Compare what the arms compute.

    In float32 every arm must equal the last one (the peer; alone: our own plain path) up to rounding. In half
    precision the first arm's error against float32 may be at most 1.1 times that of the last one.

    Args:
        arms: ours first; exact ones only.
    Returns:
        For the report: the differences by stage.
    Raises:
        ParityError: they differ by more.
    """
    half = arms[0].scenario.dtype != "float32"
    report: dict[str, Any] = {"against": arms[-1].name, "dtype": arms[0].scenario.dtype, "stages": {}}
    for stage, tolerance in _STAGES.items():
        if half and stage == "denoise":
            continue  # a loop in half precision is compared by its steps
        results = [_result(arm, stage) for arm in arms]
        if half:
            report["stages"][stage] = _half(arms, stage, results)
            continue
        differences = {
            arm.name: _difference(result, results[-1]) for arm, result in zip(arms[:-1], results[:-1], strict=True)
        }
        for name, difference in differences.items():
            if not difference <= tolerance:
                raise ParityError(
                    f"{name} and {arms[-1].name} differ by {difference:.2e} in {stage!r}, more than {tolerance:.0e}: "
                    "their times say nothing about each other. Leave out the part that differs (VGEN_WITHOUT)."
                )
        report["stages"][stage] = differences
    return report


def _result(arm: Arm, stage: str) -> Tensor:
    work = arm.stage(stage)
    assert work is not None
    result = work().float()
    return pack(result, 1) if stage == "denoise" and result.ndim == 5 else result  # diffusers gives out tokens


def _difference(result: Tensor, reference: Tensor) -> float:
    """Largest absolute difference, in units of the reference's spread where that is above 1."""
    return float((result - reference).abs().max() / reference.std().clamp(min=1.0))


def _half(arms: Sequence[Arm], stage: str, results: Sequence[Tensor]) -> dict[str, float]:
    peer = arms[-1]
    model = peer.pipeline.vae if stage == "decode" else peer.pipeline.transformer
    dtype = next(model.parameters()).dtype
    torch.nn.Module.to(model, torch.float32)
    try:
        reference = _result(peer, stage)
    finally:
        torch.nn.Module.to(model, dtype)
    errors = {
        arm.name: float((result - reference).square().mean().sqrt()) for arm, result in zip(arms, results, strict=True)
    }
    if not errors[arms[0].name] <= ALLOWED * errors[peer.name]:
        raise ParityError(
            f"in {stage!r} the error of {arms[0].name} against float32 is {errors[arms[0].name]:.2e}, more than "
            f"{ALLOWED} times that of {peer.name} ({errors[peer.name]:.2e})."
        )
    return errors
