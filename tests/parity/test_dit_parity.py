"""VideoDiT against diffusers' LTXVideoTransformer3DModel with the same random weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel

from vgen.models import VideoDiT

SIZE = (2, 3, 4)
TOKENS = 24


def _config(heads: int, head_dim: int, **more) -> dict:
    return {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "cross_attention_dim": heads * head_dim,
        "num_layers": 2,
        "caption_channels": 20,
        **more,
    }


def _pair(config, fill_zeros):
    torch.manual_seed(0)
    reference = fill_zeros(LTXVideoTransformer3DModel(**config))
    ours = VideoDiT(**config).eval()
    assert dict(ours.named_parameters()).keys() == dict(reference.named_parameters()).keys()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


def _inputs(mask: str = "ragged") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    keep = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1] + [0] * 6])
    return {
        "hidden_states": torch.randn((3, TOKENS, 8), generator=generator),
        "encoder_hidden_states": torch.randn((3, 7, 20), generator=generator),
        "encoder_attention_mask": keep if mask == "ragged" else torch.ones_like(keep),
    }


def _coordinates(causal: bool) -> torch.Tensor:
    frames, rows, columns = torch.meshgrid(*[torch.arange(n).float() for n in SIZE], indexing="ij")
    seconds = (frames * 8 - 7).clamp(min=0) / 25 if causal else frames * 8 / 25
    return torch.stack([seconds, rows * 32, columns * 32]).flatten(1).expand(3, -1, -1)


TIMESTEPS = {
    "by sample": torch.tensor([900.0, 30.0, 500.0]),
    "by token": torch.rand((3, TOKENS), generator=torch.Generator().manual_seed(4)) * 1000,
}
POSITIONS = {
    "grid": dict(zip(("num_frames", "height", "width"), SIZE, strict=True)),
    "scaled grid": {
        **dict(zip(("num_frames", "height", "width"), SIZE, strict=True)),
        "rope_interpolation_scale": (8 / 25, 32, 32),
    },
    "causal coordinates": {"video_coords": _coordinates(True)},
    "plain coordinates": {"video_coords": _coordinates(False)},
}


@pytest.mark.parametrize("positions", list(POSITIONS))
@pytest.mark.parametrize("timesteps", list(TIMESTEPS))
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 8), (4, 8), (2, 10)], ids=["24", "32", "20"])
@torch.no_grad()
def test_forward(fill_zeros, assert_close, heads, head_dim, timesteps, positions):
    """Widths 32 and 20 do not divide by six: their first channels are not rotated."""
    ours, reference = _pair(_config(heads, head_dim), fill_zeros)
    arguments = {**_inputs(), "timestep": TIMESTEPS[timesteps], **POSITIONS[positions]}
    assert_close(ours(**arguments).sample, reference(**arguments).sample)


@pytest.mark.parametrize(
    "more",
    [
        {"norm_elementwise_affine": True},
        {"attention_bias": False, "attention_out_bias": False},
        {"activation_fn": "gelu"},
        {"out_channels": None},
    ],
    ids=lambda more: next(iter(more)),
)
@torch.no_grad()
def test_other_configurations(fill_zeros, assert_close, more):
    ours, reference = _pair(_config(2, 12, **more), fill_zeros)
    arguments = {**_inputs(), "timestep": TIMESTEPS["by token"], **POSITIONS["grid"]}
    assert_close(ours(**arguments).sample, reference(**arguments).sample)


@torch.no_grad()
def test_mask_kinds_agree(fill_zeros, assert_close):
    ours, reference = _pair(_config(2, 12), fill_zeros)
    arguments = {"timestep": TIMESTEPS["by sample"], **POSITIONS["grid"], **_inputs()}
    expected = reference(**arguments).sample
    keep = arguments.pop("encoder_attention_mask")
    for mask in (keep, keep.bool(), keep.float(), ((1 - keep.float()) * -10000.0).unsqueeze(1)):
        assert_close(ours(**arguments, encoder_attention_mask=mask).sample, expected)
    full = {**arguments, "encoder_attention_mask": torch.ones_like(keep)}
    assert_close(ours(**arguments).sample, reference(**full).sample)
    assert (reference(**full).sample - expected).abs().max() > 1e-3, "the mask must matter"


@torch.no_grad()
def test_a_sample_without_text_is_not_a_number_free_zone(fill_zeros):
    ours, _ = _pair(_config(2, 12), fill_zeros)
    arguments = {**_inputs(), "timestep": TIMESTEPS["by sample"], **POSITIONS["grid"]}
    arguments["encoder_attention_mask"] = torch.zeros((3, 7))
    alone = ours(**arguments).sample
    arguments["encoder_attention_mask"] = torch.ones((3, 7))
    assert torch.isfinite(alone).all()
    torch.testing.assert_close(alone, ours(**arguments).sample)


def test_gradients(fill_zeros, assert_close):
    ours, reference = _pair(_config(2, 10), fill_zeros)
    arguments = {**_inputs(), "timestep": TIMESTEPS["by token"], **POSITIONS["causal coordinates"]}
    for model in (ours, reference):
        model(**arguments).sample.square().mean().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - theirs[name].grad).abs().max() <= 1e-5, name


def test_released_widths_have_the_released_number_of_parameters():
    with torch.device("meta"):
        model = VideoDiT()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 1923
