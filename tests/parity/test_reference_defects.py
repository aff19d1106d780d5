"""Where the reference fails and vgen does not. Each test shows both, so that it fails once the reference is mended."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXPipeline

from vgen.models import CausalVideoVAE
from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline

CALL = {
    "prompt": "dance monkey",
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "frame_rate": 25,
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "max_sequence_length": 16,
    "output_type": "latent",
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}


def _pair(config, fill_zeros):
    """The same random weights in both classes."""
    torch.manual_seed(0)
    theirs = fill_zeros(AutoencoderKLLTXVideo(**config))
    ours = CausalVideoVAE(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _latents(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@cache
def _load(cls, folder):
    pipeline = cls.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _nearest_frames(pieces, whole):
    """For each frame decoded in pieces, the number of the frame of the whole clip that it is most like."""
    distance = (pieces[0, :, :, None] - whole[0, :, None]).square().mean(dim=(0, 3, 4))
    return distance.argmin(dim=1).tolist()


@torch.no_grad()
def test_framewise_decoding_shifts_no_frame(vae_configs, fill_zeros):
    theirs, ours = _pair(vae_configs["0.9.0"], fill_zeros)
    latents = _latents(1, 8, 6, 2, 2)
    whole = theirs.decode(latents).sample
    for vae in (theirs, ours):
        vae.use_framewise_decoding = True
    shifted, streamed = theirs.decode(latents).sample, ours.decode(latents).sample
    assert _nearest_frames(streamed, whole) == list(range(41))
    assert _nearest_frames(shifted, whole)[20:] != list(range(20, 41))


@torch.no_grad()
def test_slicing_works_with_a_timestep_conditioned_decoder(vae_configs, fill_zeros):
    theirs, ours = _pair(vae_configs["0.9.5"], fill_zeros)
    latents, timestep = _latents(2, 8, 2, 2, 2), torch.tensor([0.05, 0.05])
    whole = ours.decode(latents, timestep).sample
    for vae in (theirs, ours):
        vae.enable_slicing()
    with pytest.raises((ValueError, RuntimeError)):
        theirs.decode(latents, timestep)
    torch.testing.assert_close(ours.decode(latents, timestep).sample, whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_framewise_encoding_has_an_effect_of_its_own(vae_configs, fill_zeros):
    video = _latents(1, 3, 33, 64, 64)
    frames = {}
    for name, vae in zip(("theirs", "ours"), _pair(vae_configs["0.9.0"], fill_zeros), strict=True):
        vae.use_framewise_encoding, vae.use_framewise_decoding = True, False
        seen: list[int] = []
        vae.encoder.conv_in.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].shape[2]))
        vae.encode(video)
        frames[name] = max(seen)
    assert frames["theirs"] == 33
    assert frames["ours"] < 33


@torch.no_grad()
def test_injected_noise_is_drawn_from_the_generator(vae_091_config, fill_zeros):
    latents, timestep = _latents(1, 8, 2, 2, 2), torch.tensor([0.05])
    equal = {}
    for name, vae in zip(("theirs", "ours"), _pair(vae_091_config, fill_zeros), strict=True):
        for parameter_name, parameter in vae.named_parameters():
            if "per_channel_scale" in parameter_name:
                parameter.fill_(0.5)
        made = []
        for seed in (1, 2):
            torch.manual_seed(seed)  # the global generator, which nobody should depend on
            keywords = {"generator": torch.Generator().manual_seed(0)} if name == "ours" else {}
            made.append(vae.decode(latents, timestep, **keywords).sample)
        equal[name] = torch.equal(*made)
    assert equal == {"theirs": False, "ours": True}


def test_timesteps_can_be_given(ltx_folders):
    folder = ltx_folders["0.9.0"]
    call = {**CALL, "timesteps": [1000, 700, 300], "generator": torch.Generator().manual_seed(0)}
    with pytest.raises(ValueError, match="timesteps"):
        _load(LTXPipeline, folder)(**call)
    assert torch.isfinite(_load(TextToVideoPipeline, folder)(**call).frames).all()


def test_several_videos_a_prompt_where_the_decoder_knows_the_timestep(ltx_folders):
    folder = ltx_folders["0.9.5"]
    call = {**CALL, "num_videos_per_prompt": 2, "output_type": "pt"}
    with pytest.raises((RuntimeError, ValueError)):
        _load(LTXPipeline, folder)(**call, generator=torch.Generator().manual_seed(0))
    assert len(_load(TextToVideoPipeline, folder)(**call, generator=torch.Generator().manual_seed(0)).frames) == 2


def test_stochastic_sampling_estimates_the_clean_clip_with_the_right_sign(ltx_folders):
    """With one step from pure noise the result is the estimate of the clean clip itself: noise - velocity."""
    estimates = {}
    for cls in (LTXConditionPipeline, MaskedPredictionPipeline):
        pipeline = cls.from_pretrained(
            ltx_folders["0.9.0"], scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
        )
        pipeline.set_progress_bar_config(disable=True)
        calls = []
        pipeline.transformer.register_forward_hook(
            lambda _, args, kwargs, output, calls=calls: calls.append((kwargs["hidden_states"], output[0])),
            with_kwargs=True,
        )
        found = pipeline(**{**CALL, "num_inference_steps": 1}, generator=torch.Generator().manual_seed(0)).frames
        ((noise, velocity),) = calls
        found = found.flatten(2).transpose(1, 2)  # [1, C, f, h, w] -> [1, N, C]
        assert velocity.abs().max() > 0.1
        estimates[cls] = [float((found - (noise + sign * velocity)).abs().max()) for sign in (-1, 1)]
    assert estimates[LTXConditionPipeline][1] < 1e-4 < estimates[LTXConditionPipeline][0]
    assert estimates[MaskedPredictionPipeline][0] < 1e-4 < estimates[MaskedPredictionPipeline][1]
