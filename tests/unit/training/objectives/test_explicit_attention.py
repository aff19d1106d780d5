"""Attention written out equals the fused one."""

from __future__ import annotations

import torch

from vgen.models import VideoDiT
from vgen.training.objectives.explicit_attention import use_explicit_attention
from vgen.types import SkipLayers


def _transformer_and_arguments() -> tuple[VideoDiT, dict[str, torch.Tensor]]:
    transformer = VideoDiT(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=8,
    )
    generator = torch.Generator().manual_seed(0)
    transformer.init_weights(generator)
    torch.nn.init.normal_(transformer.proj_out.weight, generator=generator)
    arguments = {
        "hidden_states": torch.randn(2, 12, 4, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 8, generator=generator),
        "timestep": torch.tensor([300.0, 800.0]),
        "encoder_attention_mask": torch.tensor([[True] * 5, [True] * 2 + [False] * 3]),
        "video_coords": torch.rand(1, 3, 12, generator=generator) * 8,
    }
    return transformer, arguments


def test_explicit_attention_changes_nothing_but_time() -> None:
    transformer, arguments = _transformer_and_arguments()

    def gradients() -> list[torch.Tensor]:
        transformer.zero_grad()
        output = transformer(**arguments).sample
        output.square().sum().backward()
        return [output, *(value.grad for value in transformer.parameters() if value.grad is not None)]

    fused = gradients()
    use_explicit_attention(transformer)
    explicit = gradients()
    assert len(explicit) == len(fused) > 20
    for first, second in zip(fused, explicit, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_explicit_attention_leaves_out_what_spatiotemporal_guidance_asks_for() -> None:
    transformer, arguments = _transformer_and_arguments()
    whole = transformer(**arguments).sample
    skip = (SkipLayers("attention_values", (1,)),)
    fused = transformer(**arguments, skip_layers=skip).sample
    use_explicit_attention(transformer)
    explicit = transformer(**arguments, skip_layers=skip).sample
    torch.testing.assert_close(explicit, fused, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(explicit, whole, rtol=1e-3, atol=1e-3)
