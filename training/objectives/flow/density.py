"""Where on the way from data to noise a finished model is trained: as its own scheduler would shift it."""

from __future__ import annotations

from typing import Any

from vgen.request.steps import resolution_shift_mu


def scheduler_mu(scheduler: Any, num_tokens: int) -> float:
    """mu of a model's scheduler; LTX-Video's line where it does not shift by token count.

    Args:
        scheduler: of a pipeline.
        num_tokens: tokens of the video.
    """
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return resolution_shift_mu(num_tokens)
    return resolution_shift_mu(
        num_tokens,
        base_tokens=config.base_image_seq_len,
        max_tokens=config.max_image_seq_len,
        base_shift=config.base_shift,
        max_shift=config.max_shift,
    )
