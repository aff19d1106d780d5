"""Perturbed forwards and guidance formulas against diffusers' own, with the same random weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.hooks import LayerSkipConfig, apply_layer_skip
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor

from vgen.diffusion.guidance import AdaptiveProjectedGuidance, StepState, project_unconditional
from vgen.models import VideoDiT
from vgen.types import SkipLayers

CONFIG = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "num_layers": 3,
    "caption_channels": 20,
}
BLOCKS = (0, 2)


class _InputAsResult(LTXVideoAttnProcessor):
    """The attention's input goes straight to its output projection."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        return hidden_states


class _ValuesAsResult(LTXVideoAttnProcessor):
    """diffusers' own way of leaving the scores out."""

    def __call__(self, *args, **kwargs):
        with AttentionScoreSkipFunctionMode():
            return super().__call__(*args, **kwargs)


def _perturb(reference: LTXVideoTransformer3DModel, mode: str) -> None:
    if mode == "transformer_block":
        apply_layer_skip(reference, LayerSkipConfig(list(BLOCKS)))
        return
    processor = {"attention_values": _ValuesAsResult, "attention_skip": _InputAsResult}[mode]
    for block in BLOCKS:
        reference.transformer_blocks[block].attn1.set_processor(processor())


def _inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn((1, 24, 8), generator=generator),
        "encoder_hidden_states": torch.randn((1, 7, 20), generator=generator),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0]]),
        "timestep": torch.rand((1, 24), generator=generator) * 1000,
    }


@pytest.mark.parametrize("mode", ["attention_values", "attention_skip", "transformer_block"])
@torch.no_grad()
def test_a_batch_of_three_with_one_perturbed(mode, fill_zeros, assert_close):
    torch.manual_seed(0)
    reference = fill_zeros(LTXVideoTransformer3DModel(**CONFIG))
    ours = VideoDiT(**CONFIG).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    size = {"num_frames": 2, "height": 3, "width": 4}
    inputs = _inputs()
    plain = reference(**inputs, **size, return_dict=False)[0]
    _perturb(reference, mode)
    perturbed = reference(**inputs, **size, return_dict=False)[0]
    assert (plain - perturbed).abs().max() > 1e-3
    together = {name: torch.cat([value] * 3) for name, value in inputs.items()}
    skips = (None, None, SkipLayers(mode, BLOCKS))
    joined = ours(**together, **size, skip_layers=skips, return_dict=False)[0]
    assert_close(joined, torch.cat([plain, plain, perturbed]))
    alone = ours(**inputs, **size, skip_layers=SkipLayers(mode, BLOCKS), return_dict=False)[0]
    assert_close(alone, perturbed)


def test_cfg_star(assert_close):
    generator = torch.Generator().manual_seed(0)
    cond, uncond = (torch.randn(2, 24, 8, generator=generator) for _ in range(2))
    scale = cfg_zero_star_scale(cond.flatten(1), uncond.flatten(1)).view(-1, 1, 1)
    assert_close(project_unconditional(uncond, cond), uncond * scale)


@pytest.mark.parametrize(("eta", "threshold", "momentum"), [(0.0, 5.0, -0.5), (0.3, 0.0, -0.75), (1.0, 15.0, 0.5)])
def test_adaptive_projected_guidance(eta, threshold, momentum, assert_close):
    guidance = AdaptiveProjectedGuidance(4.0, eta, threshold, momentum)
    buffer, generator = MomentumBuffer(momentum), torch.Generator().manual_seed(0)
    for index, sigma in enumerate((1.0, 0.7, 0.3)):
        latents, cond, uncond = (torch.randn(2, 24, 8, generator=generator) for _ in range(3))
        clean, other = latents - sigma * cond, latents - sigma * uncond
        expected = normalized_guidance(clean, other, 3.0, buffer, eta, threshold, use_original_formulation=True)
        step = StepState(index, 3, torch.tensor(sigma), latents)
        assert_close(latents - sigma * guidance.combine({"cond": cond, "uncond": uncond}, step), expected)
