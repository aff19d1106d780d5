"""`--memory`: how a job fits into it, planned and said before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.cli import display

if TYPE_CHECKING:
    from vgen.request.request import ResolvedRequest

_GIVEN_LATER = {"interpolate": 1, "loop": 1, "extend": 1, "story": 1}
"""Pictures that a task gives beside the clip's first frames, each with tokens of its own."""


def plan_memory(request: ResolvedRequest, folder: Path, *, keep_text: bool) -> Any:
    """The plan of a job whose device and dtype are settled; imports torch.

    Args:
        request: with `memory`.
        folder: of the model, or its single file.
        keep_text: whether the text encoder stays with the other models.
    Returns:
        A `vgen.engine.memory.plan.MemoryPlan`; what it says is printed.
    Raises:
        OutOfMemoryError: the job fits in no way; names what would.
    """
    import torch

    from vgen.engine.memory.steps import Work
    from vgen.pipelines.loading.model_files import ModelParts
    from vgen.pipelines.loading.placement import plan_call, sizes_of
    from vgen.types import VideoShape

    sizes = sizes_of(
        folder,
        getattr(torch, request.dtype),
        request.text_encoder,
        keep_text=keep_text,
        quantize=request.quantize,
        quantize_text=request.quantize_text,
    )
    shape = VideoShape(request.num_frames, request.height, request.width).latent(sizes.vae.strides)
    pictures = _GIVEN_LATER.get(request.task, 0) + len(request.keyframes or ())
    work = Work(
        shape,
        branches=request.num_branches,
        text_tokens=int(ModelParts(request.model, folder).defaults.get("max_sequence_length") or 128),
        extra_tokens=pictures * shape.height * shape.width // sizes.transformer.config.patch_size**2,
        encodes=request.task != "generate",
    )
    assert request.memory is not None
    adapters = sum(Path(_file(entry)).stat().st_size for entry in request.lora or ())
    plan = plan_call(sizes, work, request.memory - adapters, request.device)
    for line in plan.lines():
        display.say(line)
    return plan


def _file(entry: str) -> str:
    from vgen.request.fields import split_lora

    return split_lora(entry)[0]
