"""The memory that a call allows the VAE: `vae_memory` in settings, kept by planning before coding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vgen.engine.memory.coding import coding_within, decoding_peak, encoding_peak
from vgen.types import LatentShape


def within_memory(
    vae: Any, shape: LatentShape, batch: int, asked: int | str | None, *, encode: bool = False
) -> AbstractContextManager[None]:
    """Inside, the VAE codes within what was asked for.

    Args:
        vae: the CausalVideoVAE.
        shape, batch: of the latents.
        asked: bytes, "auto" (what is free), or None (as the VAE is set up).
        encode: whether pixels become latents, rather than latents pixels.
    Raises:
        OutOfMemoryError: no way of coding is small enough.
    """
    if asked is None:
        return nullcontext()
    budget = asked if isinstance(asked, int) else None
    if budget is None and vae.spread is not None:
        budget = vae.spread.room()  # the same on all processes, or they would not code in the same pieces
    return coding_within(encoding_peak if encode else decoding_peak, vae, shape, batch, budget)
