"""CausalVideoVAE: interface, saving, slicing, tiles, injected noise, refusals."""

from __future__ import annotations

import json

import pytest
import torch

from vgen import ops
from vgen.errors import RequestError, ShapeError
from vgen.models import CausalVideoVAE
from vgen.models.vae.blocks import ResnetBlock, space_to_depth
from vgen.models.vae.causal_conv import FramePaddedConv3d

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def _video(frames=5, height=16, width=24, batch=2) -> torch.Tensor:
    return torch.rand((batch, 3, frames, height, width), generator=torch.Generator().manual_seed(1)) * 2 - 1


def _latents(batch=2, frames=2, height=2, width=3) -> torch.Tensor:
    return torch.randn((batch, 4, frames, height, width), generator=torch.Generator().manual_seed(2))


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_space_to_depth_and_back(stride):
    video = _video(frames=4)
    deep = space_to_depth(video, stride)
    assert deep.shape[1] == 3 * stride[0] * stride[1] * stride[2]
    assert torch.equal(ops.depth_to_space(deep, stride), video)


@torch.no_grad()
def test_save_and_load(vae, tmp_path):
    vae.latents_mean.fill_(0.3)
    vae.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["decoder_upsample_type"] == ["spatiotemporal", "temporal"]
    again, info = CausalVideoVAE.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(again(_video()).sample, vae(_video()).sample)
    assert torch.equal(again.latents_mean, vae.latents_mean)
    assert (again.strides, again.spatial_compression_ratio, again.temporal_compression_ratio) == ((4, 8, 8), 8, 4)


def test_the_key_of_our_own_is_not_written_at_its_default(vae_config, tmp_path):
    del vae_config["decoder_upsample_type"]
    CausalVideoVAE(**vae_config).save_config(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "decoder_upsample_type" not in saved
    assert saved["block_out_channels"] == [16, 32, 32]


@torch.no_grad()
def test_posterior(vae):
    posterior = vae.encode(_video()).latent_dist
    assert torch.equal(posterior.mode(), posterior.mean)
    shared = posterior.logvar
    assert torch.equal(shared, shared[:, :1].expand_as(shared)), "one log-variance for all channels"
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(9))
    drawn = posterior.sample(torch.Generator().manual_seed(9))
    torch.testing.assert_close(drawn, posterior.mean + (0.5 * shared).exp() * noise)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(posterior.kl(), reference.sum(dim=(1, 2, 3, 4)))
    first, second = posterior.sample(_generators(1, 2))
    alone = vae.encode(_video()[1:]).latent_dist.sample(_generators(2))[0]
    torch.testing.assert_close(second, alone, **TOLERANCE)
    assert (first - second).abs().max() > 1e-3


@torch.no_grad()
def test_tuples(vae):
    (posterior,) = vae.encode(_video(), return_dict=False)
    (sample,) = vae.decode(posterior.mode(), return_dict=False)
    assert torch.equal(sample, vae(_video(), return_dict=False)[0])


@torch.no_grad()
def test_slicing_with_timesteps_and_noise(noisy_vae):
    """Batch 2 with a timestep each: slices equal the batch where every sample has its generator."""
    timesteps = torch.tensor([0.05, 0.6])
    whole = noisy_vae.decode(_latents(), timesteps, generator=_generators(1, 2)).sample
    noisy_vae.enable_slicing()
    sliced = noisy_vae.decode(_latents(), timesteps, generator=_generators(1, 2)).sample
    shared = noisy_vae.decode(_latents(), timesteps[:1], generator=_generators(1, 2)).sample
    noisy_vae.disable_slicing()
    torch.testing.assert_close(sliced, whole, **TOLERANCE)
    expected = noisy_vae.decode(_latents(), timesteps[:1].expand(2), generator=_generators(1, 2)).sample
    torch.testing.assert_close(shared, expected, **TOLERANCE)
    assert (shared - sliced).abs().max() > 1e-4, "the timestep must matter"
    video = _video()
    noisy_vae.enable_slicing()
    encoded = noisy_vae.encode(video).latent_dist.mean
    noisy_vae.disable_slicing()
    torch.testing.assert_close(encoded, noisy_vae.encode(video).latent_dist.mean, **TOLERANCE)


@torch.no_grad()
def test_a_timestep_where_the_channels_change(vae_config):
    """The block that changes the channels comes before the time embedding and takes none."""
    torch.manual_seed(0)
    model = CausalVideoVAE(**{**vae_config, "timestep_conditioning": True}).eval()
    assert model.decoder.up_blocks[1].conv_in.scale_shift_table is None
    early, late = (model.decode(_latents(), torch.tensor([value])).sample for value in (0.05, 0.6))
    assert (early - late).abs().max() > 1e-4


@torch.no_grad()
def test_injected_noise_comes_from_the_generator(noisy_vae):
    timestep = torch.tensor([0.05])
    state = torch.get_rng_state()
    first, again, other = (
        noisy_vae.decode(_latents(), timestep, generator=torch.Generator().manual_seed(seed)).sample
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3


@torch.no_grad()
def test_each_sample_gets_the_noise_it_gets_alone(noisy_vae):
    timestep, latents = torch.tensor([0.05]), _latents()
    together = noisy_vae.decode(latents, timestep, generator=_generators(1, 2)).sample
    alone = noisy_vae.decode(latents[1:], timestep, generator=_generators(2)).sample
    torch.testing.assert_close(together[1:], alone, **TOLERANCE)


@pytest.mark.parametrize("noisy", [False, True])
def test_gradient_checkpointing_changes_no_gradient(vae, noisy_vae, noisy):
    """With injected noise the recomputation has to see the same noise."""
    model = noisy_vae if noisy else vae
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        if enable:
            model.enable_gradient_checkpointing()
        decoded = model.train()(_video(), torch.tensor([0.05]), generator=torch.Generator().manual_seed(1)).sample
        decoded.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, **TOLERANCE)


@torch.no_grad()
def test_tiles_as_large_as_the_picture_change_nothing(vae):
    video = _video()
    latents = vae.encode(video).latent_dist.mean
    decoded = vae.decode(latents).sample
    vae.enable_tiling(tile_sample_min_height=16, tile_sample_min_width=24)
    assert torch.equal(vae.encode(video).latent_dist.mean, latents)
    assert torch.equal(vae.decode(latents).sample, decoded)


@torch.no_grad()
def test_tiles_are_aligned_and_blended_without_a_seam(vae):
    """Where no convolution sees its neighbours in space, tiles have to give exactly the whole."""
    for module in vae.modules():
        if isinstance(module, FramePaddedConv3d):
            centre = module.weight[:, :, :, 1:2, 1:2].clone()
            module.weight.zero_()
            module.weight[:, :, :, 1:2, 1:2] = centre
    video = _video(5, 96, 120, 1)
    latents = vae.encode(video).latent_dist.mean
    whole = vae.decode(latents).sample
    assert whole.std() > 1e-2
    vae.enable_tiling(64, 64, 40, 32)
    widths = []
    handle = vae.decoder.conv_in.register_forward_pre_hook(lambda _, arguments: widths.append(arguments[0].shape[-1]))
    torch.testing.assert_close(vae.decode(latents).sample, whole, **TOLERANCE)
    assert len(widths) == 12 and max(widths) == 8, "three by four tiles of at most 64 pixels"
    handle.remove()
    torch.testing.assert_close(vae.encode(video).latent_dist.mean, latents, **TOLERANCE)
    vae.disable_tiling()
    assert torch.equal(vae.decode(latents).sample, whole)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tile_sample_min_height": 20}, "tile_sample_min_height=20 must divide by the model's stride 8; use 16"),
        ({"tile_sample_stride_width": 3}, "tile_sample_stride_width=3 must divide"),
        ({"tile_sample_min_width": 16, "tile_sample_stride_width": 24}, "use at most 16"),
    ],
)
def test_tile_sizes_are_checked(vae, sizes, message):
    with pytest.raises(ShapeError, match=message):
        vae.enable_tiling(**sizes)
    assert not vae.use_tiling


def test_inputs_are_checked(vae, noisy_vae):
    with pytest.raises(ShapeError, match=r"num_frames=4 .* use 1 or 5"):
        vae.encode(_video(frames=4))
    with pytest.raises(ShapeError, match=r"height=20 .* use 16 or 24"):
        vae.encode(_video(height=20))
    with pytest.raises(ShapeError, match="F = 1 for an image"):
        vae.encode(_video()[:, :, 0])
    with pytest.raises(ShapeError, match="F = 1 for an image"):
        vae.decode(_latents()[:, :, 0])
    with pytest.raises(ShapeError, match="1 generators for 2 latents"):
        vae.decode(_latents(), generator=_generators(1))
    with pytest.raises(RequestError, match="temb=None"):
        noisy_vae.decode(_latents())
    with pytest.raises(RequestError, match="3 values for 2 latents"):
        noisy_vae.decode(_latents(), torch.zeros(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("NoBlock",) * 2}, "'NoBlock' is not known"),
        ({"decoder_upsample_type": ("temporal", "sideways")}, "'sideways' is not known"),
        ({"downsample_type": ("temporal", "sideways")}, "'sideways' is not known"),
        ({"block_out_channels": (48, 64, 96)}, "64 -> 96 cannot be downsampled"),
        ({"layers_per_block": (1,)}, "layers_per_block has 1 entries, but block_out_channels asks for 2"),
        ({"decoder_inject_noise": (False,)}, "decoder_inject_noise has 1 entries"),
        ({"upsample_residual": (True, True), "upsample_factor": (3, 1)}, "upsample_factor=3 has to meet"),
        ({"upsample_factor": (2, 1)}, "upsample_factor=2 has to meet"),
        (
            {"decoder_block_out_channels": (12, 32), "upsample_residual": (True, True)},
            "12 channels and upsample_factor=1",
        ),
    ],
)
def test_configurations_that_cannot_work_are_refused(vae_config, change, message):
    with pytest.raises(RequestError, match=message):
        CausalVideoVAE(**{**vae_config, **change})


def test_fresh_weights_start_as_shortcuts_and_alive(vae):
    vae.init_weights(torch.Generator().manual_seed(0))
    again = CausalVideoVAE.from_config(vae.config)
    again.init_weights(torch.Generator().manual_seed(0))
    for (name, one), other in zip(vae.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), f"{name} is not drawn from the generator"
    block = next(module for module in vae.modules() if isinstance(module, ResnetBlock) and module.norm3 is None)
    inputs = torch.randn(1, block.conv1.conv.in_channels, 2, 4, 4)
    assert torch.equal(block(inputs), inputs)
    decoded = vae(_video()).sample
    assert 0.1 < decoded.std() < 10
    decoded.square().mean().backward()
    dead = {name for name, p in vae.named_parameters() if p.grad.abs().max() == 0}
    assert all(".conv1." in name for name in dead), f"no gradient reaches {dead}"


@torch.no_grad()
def test_layerwise_casting_reaches_the_convolutions(vae):
    video = _video()
    expected = vae(video).sample
    vae.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert vae.decoder.conv_in.conv.weight.dtype == torch.bfloat16
    for clip, wanted in ((video, expected), (video[:, :, :1], None)):
        cast = vae(clip).sample
        assert cast.dtype == torch.float32 and torch.isfinite(cast).all()
        if wanted is not None:
            assert 0 < (cast - wanted).abs().max() < 0.1
