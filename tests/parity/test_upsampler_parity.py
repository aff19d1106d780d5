"""The latent upsampler against diffusers' own, and a call in two passes against diffusers' three pipelines in a row."""

from __future__ import annotations

from functools import cache

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXLatentUpsamplePipeline,
)
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from vgen.diffusion.latent_statistics import match_statistics, tone_map
from vgen.errors import ShapeError
from vgen.models import LatentUpsampler
from vgen.pipelines import (
    ImageToVideoPipeline,
    LatentUpsamplePipeline,
    MaskedPredictionPipeline,
    TextToVideoPipeline,
    TwoPass,
    VideoCondition,
    load_upsampler,
)

CONFIGS = {
    "spatial": {},
    "temporal": {"spatial_upsample": False, "temporal_upsample": True},
    "both": {"temporal_upsample": True},
    "frames": {"dims": 2},
}


def _reference(**config):
    torch.manual_seed(0)
    model = LTXLatentUpsamplerModel(**{"in_channels": 8, "mid_channels": 64, "num_blocks_per_stage": 2, **config})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def _latents(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CONFIGS)
def test_same_weights_same_latents(case, assert_close):
    reference = _reference(**CONFIGS[case])
    ours = LatentUpsampler.from_config(reference.config).eval()
    ours.load_state_dict(reference.state_dict())
    latents = _latents(2, 8, 3, 4, 6)
    with torch.no_grad():
        enlarged = ours(latents)
        assert_close(enlarged, reference(latents))
    scale = ours.scale
    assert enlarged.shape == (2, 8, (3 - 1) * scale.temporal + 1, 4 * scale.height, 6 * scale.width)


def test_configurations_that_mean_nothing_are_refused():
    for config, message in (
        ({"dims": 1}, "dims=1"),
        ({"spatial_upsample": False}, "both off"),
        ({"dims": 2, "temporal_upsample": True}, "needs dims=3"),
        ({"mid_channels": 40}, "mid_channels=40"),
    ):
        with pytest.raises(ShapeError, match=message):
            LatentUpsampler(**{"in_channels": 8, "mid_channels": 32, **config})
    with pytest.raises(ShapeError, match=r"\[B, 8, f, h, w\]"):
        LatentUpsampler(in_channels=8, mid_channels=32, num_blocks_per_stage=1)(_latents(1, 4, 1, 2, 2))


@pytest.mark.parametrize("factor", [0.3, 1.0, -1.5])
def test_statistics_as_the_reference_matches_them(factor, assert_close):
    latents, reference = _latents(2, 4, 3, 4, 6) * 2 + 1, _latents(2, 4, 2, 2, 3, seed=1) - 0.5
    expected = LTXLatentUpsamplePipeline.adain_filter_latent(None, latents, reference, factor)
    assert_close(match_statistics(latents, reference, factor), expected)


@pytest.mark.parametrize("compression", [0.0, 0.6, 1.0])
def test_tones_as_the_reference_maps_them(compression, assert_close):
    latents = _latents(1, 4, 2, 3, 3) * 3
    expected = LTXLatentUpsamplePipeline.tone_map_latents(None, latents, compression)
    assert_close(tone_map(latents, compression), expected)


@pytest.fixture(scope="session")
def upsample_folder(ltx_folders, tmp_path_factory):
    """Saved by diffusers' LTXLatentUpsamplePipeline."""
    folder = tmp_path_factory.mktemp("upsample")
    vae = AutoencoderKLLTXVideo.from_pretrained(ltx_folders["0.9.5"], subfolder="vae")
    LTXLatentUpsamplePipeline(vae, _reference()).save_pretrained(folder)
    return folder


def test_folders_of_the_reference_load_and_ours_load_there(upsample_folder, tmp_path, assert_close):
    ours = LatentUpsamplePipeline.from_pretrained(upsample_folder)
    assert type(ours.latent_upsampler) is LatentUpsampler
    ours.save_pretrained(tmp_path / "ours")
    again = LatentUpsamplePipeline.from_pretrained(tmp_path / "ours")
    ours.latent_upsampler.save_pretrained(tmp_path / "model")
    theirs = LTXLatentUpsamplerModel.from_pretrained(tmp_path / "model")
    latents, state = _latents(1, 8, 2, 2, 3), ours.latent_upsampler.state_dict()
    for other in (
        again.latent_upsampler,
        theirs,
        load_upsampler(tmp_path / "model"),
        load_upsampler(tmp_path / "ours"),
        load_upsampler(upsample_folder),
    ):
        assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
        with torch.no_grad():
            assert_close(ours.latent_upsampler(latents), other(latents))


def test_upsample_pipeline(upsample_folder, assert_close):
    reference = LTXLatentUpsamplePipeline.from_pretrained(upsample_folder)
    ours = LatentUpsamplePipeline.from_pretrained(upsample_folder)
    latents, size = _latents(2, 8, 2, 2, 3), {"height": 128, "width": 192}
    expected = reference(latents=latents, **size, adain_factor=0.7, output_type="latent").frames
    assert_close(ours(latents=latents, adain_factor=0.7, output_type="latent").frames, expected)
    decode = {"decode_timestep": 0.05, "decode_noise_scale": 0.025, "output_type": "pt"}
    expected = reference(latents=latents, **size, **decode, generator=torch.Generator().manual_seed(3)).frames
    frames = ours(latents=latents, **decode, generator=torch.Generator().manual_seed(3)).frames
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-4)


CALL = {
    "prompt": "dance monkey",
    "negative_prompt": "blurry",
    "num_frames": 17,
    "frame_rate": 25,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
}


@cache
def _load(cls, folder):
    options = {} if cls is LTXConditionPipeline else {"convention": "ltx-condition"}
    pipeline = cls.from_pretrained(folder, scheduler=FlowMatchEulerDiscreteScheduler(), **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _image(height=128, width=192):
    values = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


@pytest.mark.parametrize(
    ("task", "strength", "adain_factor"),
    [
        ("text", 1.0, 0.0),
        ("text", 1.0, 1.0),
        ("image", 1.0, 1.0),
        ("first", 0.3, 1.0),
        ("first", 0.7, 0.0),
        ("later", 1.0, 0.0),
        ("later", 0.5, 1.0),
        ("later", 0.9, 0.0),
    ],
)
def test_two_passes_stage_by_stage(ltx_folders, upsample_folder, monkeypatch, task, strength, adain_factor):
    """Latents of the first pass, enlarged, of the second, and the frames."""
    folder = ltx_folders["0.9.5"]
    reference, enlarge = _load(LTXConditionPipeline, folder), LTXLatentUpsamplePipeline.from_pretrained(upsample_folder)
    image = _image()
    # The reference gets the picture in each pass's size, resized as we do it.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    small = torch.nn.functional.interpolate(pixels, (64, 96), mode="bilinear")
    frame = {"text": None, "image": 0, "first": 0, "later": 16}[task]

    def conditions(picture):
        return (
            None if frame is None else [LTXVideoCondition(video=picture * 2 - 1, frame_index=frame, strength=strength)]
        )

    monkeypatch.setattr(
        reference.video_processor, "preprocess_video", lambda video, *_, **__: video.permute(1, 0, 2, 3)[None]
    )
    generator = torch.Generator().manual_seed(5)
    expected = {}
    expected["first"] = reference(
        conditions=conditions(small), **CALL, height=64, width=96, num_inference_steps=3, output_type="latent",
        generator=generator,
    ).frames  # fmt: skip
    expected["large"] = enlarge(
        latents=expected["first"], height=64, width=96, adain_factor=adain_factor, output_type="latent"
    ).frames
    second = {"num_inference_steps": 5, "denoise_strength": 0.4, "decode_timestep": 0.05, "decode_noise_scale": 0.025}
    state = generator.get_state()
    call = {**CALL, "height": 128, "width": 192, **second, "latents": expected["large"]}
    expected["second"] = reference(
        conditions=conditions(pixels), **call, output_type="latent", generator=generator
    ).frames
    generator.set_state(state)
    expected["frames"] = reference(conditions=conditions(pixels), **call, output_type="pt", generator=generator).frames

    cls, given = {
        "text": (TextToVideoPipeline, {}),
        "image": (ImageToVideoPipeline, {"image": image}),
        "first": (MaskedPredictionPipeline, {"conditions": VideoCondition(image, 0, strength)}),
        "later": (MaskedPredictionPipeline, {"conditions": VideoCondition(image, 16, strength)}),
    }[task]
    ours, found = _load(cls, folder), {}
    two_pass = TwoPass(
        load_upsampler(upsample_folder), second_pass=second, downscale_factor=0.5, adain_factor=adain_factor
    )
    plain = two_pass.enlarge

    def watched(vae, latents, device=None):
        found["first"], found["large"] = latents, plain(vae, latents, device)
        return found["large"]

    monkeypatch.setattr(two_pass, "enlarge", watched)
    call = {**CALL, **given, "height": 128, "width": 192, "num_inference_steps": 3, "two_pass": two_pass}
    found["second"] = ours(**call, output_type="latent", generator=torch.Generator().manual_seed(5)).frames
    found["frames"] = ours(**call, output_type="pt", generator=torch.Generator().manual_seed(5)).frames
    for stage, tensor in expected.items():
        assert found[stage].shape == tensor.shape
        assert tensor.std() > 0.05
        torch.testing.assert_close(found[stage], tensor, rtol=0, atol=1e-4, msg=lambda text, s=stage: f"{s}: {text}")
