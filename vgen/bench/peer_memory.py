"""What diffusers' LTXPipeline would hold at its peak, by running its own models on tensors without content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from vgen.bench.build import Components, peer_components
from vgen.engine.memory.coding import WORKSPACE
from vgen.engine.memory.offload import weight_bytes
from vgen.engine.memory.plan import Sizes
from vgen.engine.memory.rehearsal import by_few_blocks, rehearse
from vgen.engine.memory.steps import Work, encoding_text_peak

ARMS = ("default", "model offload", "model offload, VAE tiles")
"""All models on the device; `enable_model_cpu_offload()`; with `vae.enable_tiling()` too, whose clip is another."""


def peer_stages(sizes: Sizes, work: Work, arm: str, *, base: int) -> Mapping[str, int]:
    """Most bytes on the device by stage of one call of LTXPipeline, the runtime included.

    Args:
        sizes: of our model, with a text encoder; theirs has the same weights.
        work: the call; as diffusers does it: the branches of the guidance are one batch, texts are encoded one by one.
        arm: of ARMS.
        base: what the runtime takes.
    """
    assert sizes.text is not None
    theirs = peer_components(Components(sizes.transformer, sizes.vae, FlowMatchEulerDiscreteScheduler()))
    if arm == ARMS[2]:
        theirs.vae.enable_tiling()
    models: dict[str, tuple[nn.Module, int]] = {
        "encode the text": (sizes.text, encoding_text_peak(sizes.text, 1, work.text_tokens)),
        "denoise": (theirs.transformer, peer_denoising_peak(theirs.transformer, work)),
        "decode": (theirs.vae, int(peer_decoding_peak(theirs.vae, work) * WORKSPACE)),
    }
    everything = sum(weight_bytes(model) for model, _ in models.values())
    return {
        stage: base + working + (everything if arm == ARMS[0] else weight_bytes(model))
        for stage, (model, working) in models.items()
    }


def peer_denoising_peak(transformer: Any, work: Work) -> int:
    """Most bytes above the weights in two steps of LTXPipeline's loop; `transformer` is diffusers', on meta."""
    shape, dtype = work.shape, transformer.dtype
    rows = work.branches * work.clips

    def run() -> None:
        latents = torch.empty(work.clips, shape.num_tokens, transformer.config.in_channels, device="meta")
        width = transformer.config.caption_channels
        embeds = torch.empty(rows, work.text_tokens, width, device="meta", dtype=dtype)
        mask = torch.empty(rows, work.text_tokens, dtype=torch.bool, device="meta")
        for _ in range(2):
            model_input = torch.cat([latents] * work.branches).to(dtype)
            noise_pred = transformer(
                hidden_states=model_input,
                encoder_hidden_states=embeds,
                timestep=torch.empty(rows, device="meta"),
                encoder_attention_mask=mask,
                num_frames=shape.frames,
                height=shape.height,
                width=shape.width,
                rope_interpolation_scale=(8 / 25, 32, 32),
                return_dict=False,
            )[0].float()
            first, *others = noise_pred.chunk(work.branches)
            for other in others:
                first = first + 3.0 * (other - first)
            latents = latents + first

    return by_few_blocks(transformer, "transformer_blocks", lambda: rehearse(run, transformer))


def peer_decoding_peak(vae: Any, work: Work) -> int:
    """Most bytes above the weights while AutoencoderKLLTXVideo decodes; `vae` is diffusers', on meta."""
    latents = torch.empty(work.clips, vae.config.latent_channels, *work.shape, device="meta", dtype=vae.dtype)
    timestep: Tensor | None = None
    if vae.config.timestep_conditioning:
        timestep = torch.empty(work.clips, device="meta", dtype=vae.dtype)
    return rehearse(lambda: vae.decode(latents, timestep, return_dict=False), vae)
