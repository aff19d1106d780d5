"""Coding a clip piece by piece: the frames of the whole, for all three generations of VAE."""

from __future__ import annotations

import pytest
import torch

from vgen.errors import ShapeError
from vgen.models import CausalVideoVAE
from vgen.models.vae.streaming import FrameStream, StreamStage, run_in_pieces

CONV, SPACE_TO_DEPTH = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # models in float64: a convolution of another size may round otherwise
CONFIGS = {
    "0.9.0": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": (CONV,) * 4,
        "decoder_block_out_channels": (8, 8, 16, 16),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5,
    },
    "0.9.1": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": (CONV,) * 4,
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 4,
        "decoder_spatio_temporal_scaling": (True,) * 3,
        "decoder_inject_noise": (True, True, True, False),
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2,) * 3,
        "timestep_conditioning": True,
    },
    "0.9.5": {
        "block_out_channels": (8, 16, 32, 64, 128),
        "down_block_types": (SPACE_TO_DEPTH,) * 4,
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 4,
        "spatio_temporal_scaling": (True,) * 4,
        "decoder_spatio_temporal_scaling": (True,) * 3,
        "decoder_inject_noise": (False,) * 4,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2,) * 3,
        "timestep_conditioning": True,
    },
}


def _vae(version: str, **changes) -> CausalVideoVAE:
    vae = CausalVideoVAE(latent_channels=8, **{**CONFIGS[version], **changes}).eval()
    torch.nn.Module.double(vae)
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in vae.parameters():
            if not value.any():
                value.copy_(torch.randn(value.shape, generator=source) * 0.3)
    return vae


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def _timestep(vae: CausalVideoVAE) -> torch.Tensor | None:
    return torch.tensor([0.05, 0.2], dtype=torch.float64) if vae.config.timestep_conditioning else None


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("version", CONFIGS)
def test_streamed_equals_whole(version: str, causal: bool) -> None:
    vae = _vae(version, decoder_causal=causal)
    video, latents, timestep = _random(2, 3, 33, 64, 64), _random(2, 8, 6, 2, 2), _timestep(vae)
    encoded = vae.encode(video).latent_dist.mean
    decoded = vae.decode(latents, timestep, generator=torch.Generator().manual_seed(3)).sample
    for num_frames in (8, 16):
        vae.enable_streaming(num_frames)
        torch.testing.assert_close(vae.encode(video).latent_dist.mean, encoded, **TOLERANCE)
        again = vae.decode(latents, timestep, generator=torch.Generator().manual_seed(3)).sample
        torch.testing.assert_close(again, decoded, **TOLERANCE)
    vae.disable_streaming()
    torch.testing.assert_close(vae.encode(video).latent_dist.mean, encoded, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("version", CONFIGS)
def test_pieces_of_any_size_equal_the_whole(version: str, causal: bool) -> None:
    vae = _vae(version, decoder_causal=causal)
    latents, timestep = _random(2, 8, 6, 2, 3), _timestep(vae)

    def source() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    whole = vae.decoder(latents, timestep, source())
    found = []
    for size in (1, 200_000, 300_000, 500_000, 10**9):
        vae.decoding_piece = size
        pieces = [piece.shape[2] for piece in vae.decode_in_pieces(latents, timestep, generator=source())]
        found.append(max(pieces))
        assert sum(pieces) == 41
        torch.testing.assert_close(vae.decode(latents, timestep, generator=source()).sample, whole, **TOLERANCE)
    assert found == sorted(found)
    assert found[0] <= 2 and found[-1] == 41 and len(set(found)) > 3


@torch.no_grad()
def test_no_frame_is_shifted_or_lost() -> None:
    """Each streamed frame is nearer to the whole's frame of the same number than to any other."""
    vae = _vae("0.9.0")
    latents = _random(1, 8, 7, 2, 2)
    whole = vae.decode(latents).sample[0]
    vae.enable_streaming()
    pieces = list(vae.decode_in_pieces(latents))
    assert len(pieces) > 2
    streamed = torch.cat(pieces, dim=2)[0]
    distance = (streamed[:, :, None] - whole[:, None]).square().mean(dim=(0, 3, 4))
    assert distance.argmin(dim=1).tolist() == list(range(49))


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 9])
def test_short_clips_stream_too(frames: int) -> None:
    vae = _vae("0.9.5")
    video, latents = _random(1, 3, frames, 64, 64), _random(1, 8, (frames - 1) // 8 + 1, 2, 2)
    encoded, decoded = (
        vae.encode(video).latent_dist.mean,
        vae.decode(latents, torch.tensor([0.1], dtype=torch.float64)).sample,
    )
    vae.enable_streaming()
    torch.testing.assert_close(vae.encode(video).latent_dist.mean, encoded, **TOLERANCE)
    torch.testing.assert_close(
        vae.decode(latents, torch.tensor([0.1], dtype=torch.float64)).sample, decoded, **TOLERANCE
    )


@torch.no_grad()
def test_tiles_stream_one_after_the_other() -> None:
    vae = _vae("0.9.0")
    vae.enable_tiling(64, 64, 32, 32)
    video, latents = _random(1, 3, 17, 96, 96), _random(1, 8, 3, 3, 3)
    encoded, decoded = vae.encode(video).latent_dist.mean, vae.decode(latents).sample
    vae.enable_streaming()
    torch.testing.assert_close(vae.encode(video).latent_dist.mean, encoded, **TOLERANCE)
    torch.testing.assert_close(vae.decode(latents).sample, decoded, **TOLERANCE)


@torch.no_grad()
def test_a_long_clip_never_meets_at_full_size() -> None:
    vae = _vae("0.9.0")
    vae.enable_streaming()
    seen: list[int] = []
    handle = vae.decoder.conv_out.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2]))
    frames = sum(piece.shape[2] for piece in vae.decode_in_pieces(_random(1, 8, 30, 2, 2)))
    handle.remove()
    assert frames == 233
    assert max(seen) <= 8 * 3 // 2 + 2  # a piece, half as much again, and the frames that it looks back at


@pytest.mark.parametrize("place", ["decoder", "decoder.mid_block", "decoder.up_blocks.0"])
def test_what_hooks_into_a_stage_is_run(place: str) -> None:
    """Sharding and offloading put a stage's weights in place before it runs: pieces must not pass it by."""
    vae = _vae("0.9.0")
    vae.decoding_piece = 2**8
    latents = _random(1, 8, 3, 2, 2)
    seen: list[int] = []
    with torch.no_grad():
        expected = vae.decode(latents, return_dict=False)[0]
        vae.get_submodule(place).register_forward_pre_hook(lambda *_: seen.append(1))
        found = vae.decode(latents, return_dict=False)[0]
    assert seen
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_piece_lengths_are_checked() -> None:
    vae = _vae("0.9.0")
    for wrong, nearest in ((12, 8), (3, 8), (25, 24)):
        with pytest.raises(ShapeError, match=f"num_frames={wrong} .* use {nearest}"):
            vae.enable_streaming(wrong)
    assert not vae.use_framewise_decoding


def test_the_last_piece_is_known_as_such() -> None:
    calls: list[tuple[int, bool]] = []

    def stage(piece: torch.Tensor, stream: FrameStream) -> torch.Tensor:
        calls.append((piece.shape[2], stream.last))
        return piece

    made = list(run_in_pieces([StreamStage(stage, 2), StreamStage(stage, 9)], [torch.zeros(1, 1, 3, 1, 1)] * 2))
    assert [piece.shape[2] for piece in made] == [2, 1, 2, 1]
    assert sorted(calls) == sorted(2 * [(2, False), (1, False), (2, False), (1, True)])
