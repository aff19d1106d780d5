"""`--memory`: how a job fits into it, planned before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.hub.model import Model
from vgen.request.fields import split_lora

if TYPE_CHECKING:
    from vgen.request.request import ResolvedRequest

_GIVEN_LATER = {"interpolate": 1, "loop": 1, "extend": 1, "story": 1}
"""Pictures that a task gives besides the clip's first frames, each with tokens of its own."""


def plan_memory(request: ResolvedRequest, model: Model, *, keep_text: bool) -> Any:
    """The plan of a job whose device and dtype are settled; imports torch.

    Args:
        request: with `memory`.
        model: of the request.
        keep_text: whether the text encoder stays with the other models.
    Returns:
        A `vgen.engine.memory.plan.MemoryPlan`.
    Raises:
        OutOfMemoryError: the job fits in no way; names what would.
    """
    import torch

    from vgen.engine.memory.steps import Work
    from vgen.pipelines.loading.model_files import ModelParts
    from vgen.pipelines.loading.placement import plan_call, sizes_of
    from vgen.types import VideoShape

    sizes = sizes_of(
        model.folder,
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
        text_tokens=int(ModelParts(model.name, model.folder).call_defaults["max_sequence_length"]),
        extra_tokens=pictures * shape.height * shape.width // sizes.transformer.config.patch_size**2,
        encodes=request.task != "generate",
    )
    assert request.memory is not None
    adapters = sum(Path(split_lora(entry)[0]).stat().st_size for entry in request.lora or ())
    return plan_call(sizes, work, request.memory - adapters, request.device)
