"""Video to video against diffusers, and Lightricks' own choices against what they are made of."""

from functools import cache

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from vgen.pipelines import (
    ImageToVideoPipeline,
    MaskedPredictionPipeline,
    TextToVideoPipeline,
    VideoCondition,
    VideoToVideoPipeline,
)

TOLERANCE = 1e-4
CALL = {
    "prompt": "dance monkey",
    "negative_prompt": "blurry",
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "frame_rate": 25,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
}


@cache
def _load(cls, folder, **options):
    pipeline = cls.from_pretrained(folder, scheduler=FlowMatchEulerDiscreteScheduler(), **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _seed(seed=0):
    return torch.Generator().manual_seed(seed)


def _clip():
    return np.random.default_rng(1).integers(0, 256, (17, 64, 96, 3), dtype=np.uint8)


def _tokens_drawn(seed=0):
    """Noise as Lightricks draws it, in the shape of tokens; as latents."""
    return torch.randn(1, 3 * 2 * 3, 8, generator=_seed(seed)).unflatten(1, (3, 2, 3)).permute(0, 4, 1, 2, 3)


def _compare(reference, ours):
    assert ours.shape == reference.shape
    assert reference.std() > 0.05
    torch.testing.assert_close(ours, reference, rtol=0, atol=TOLERANCE)


def _known_noise(monkeypatch, noise):
    """Let the reference start from `noise`: what it draws in that shape is replaced, and nothing else."""
    from diffusers.pipelines.ltx import pipeline_ltx_condition as module

    plain = module.randn_tensor

    def draw(shape, **options):
        return noise if tuple(shape) == tuple(noise.shape) else plain(shape, **options)

    monkeypatch.setattr(module, "randn_tensor", draw)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75])
def test_video_to_video(ltx_folders, strength):
    ours = _load(VideoToVideoPipeline, ltx_folders["0.9.5"], convention="ltx-condition")
    clip = _clip()
    pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    generator = _seed()
    torch.randn(1, 8, 3, 2, 3, generator=generator)  # the noise is drawn first, then the posterior
    with torch.no_grad():
        latents = ours.vae.normalize(ours.vae.encode(pixels).latent_dist.sample(generator))
    reference = _load(LTXConditionPipeline, ltx_folders["0.9.5"])
    call = {**CALL, "denoise_strength": strength, "output_type": "latent"}
    expected = reference(latents=latents, **call, generator=_seed()).frames
    _compare(expected, ours(clip, **call, generator=_seed()).frames)


@pytest.mark.parametrize("denoise_strength", [0.25, 0.75, 1.0])
@pytest.mark.parametrize("conditions", [[(0, 1, 0.3)], [(0, 9, 0.6)], [(8, 1, 0.3)], [(8, 9, 0.9), (0, 1, 0.5)]])
def test_soft_conditions_in_a_clip(ltx_folders, conditions, denoise_strength):
    """A strength mixes what is given with the noised clip (or with noise): frame, length and strength of each."""
    clip = torch.randn(1, 8, 3, 2, 3, generator=_seed(3))
    theirs, ours = [], []
    for frame, count, strength in conditions:
        pictures = [PIL.Image.fromarray(picture) for picture in _clip()[:count]]
        material = {"image": pictures[0]} if count == 1 else {"video": pictures}
        theirs.append(LTXVideoCondition(**material, frame_index=frame, strength=strength))
        ours.append(VideoCondition(pictures, frame, strength))
    reference = _load(LTXConditionPipeline, ltx_folders["0.9.5"])
    call = {**CALL, "denoise_strength": denoise_strength, "output_type": "latent"}
    latents = clip if denoise_strength < 1 else None
    expected = reference(conditions=theirs, latents=latents, **call, generator=_seed()).frames
    pipeline = _load(MaskedPredictionPipeline, ltx_folders["0.9.5"], convention="ltx-condition")
    _compare(expected, pipeline._generate({**call, "generator": _seed()}, ours, latents).frames)


def test_a_weak_condition_hardly_changes_a_clip(ltx_folders):
    pipeline = _load(MaskedPredictionPipeline, ltx_folders["0.9.5"], convention="ltx-condition")
    clip = torch.randn(1, 8, 3, 2, 3, generator=_seed(3))
    call = {**CALL, "denoise_strength": 0.25, "output_type": "latent"}
    picture = PIL.Image.fromarray(_clip()[0])
    strong, weak, without = (
        pipeline._generate({**call, "generator": _seed()}, conditions, clip).frames[:, :, 0]
        for conditions in ([VideoCondition(picture, 0, 1.0)], [VideoCondition(picture, 0, 0.001)], [])
    )
    assert (weak - without).abs().max() < 0.02 < (strong - without).abs().max()


def test_original_text_to_video_latents(ltx_folders, monkeypatch):
    """Measured elsewhere: the original's latents are LTXConditionPipeline's, but for the shape of the draw."""
    ours = _load(TextToVideoPipeline, ltx_folders["0.9.5"], convention="original")
    _known_noise(monkeypatch, _tokens_drawn())
    expected = _load(LTXConditionPipeline, ltx_folders["0.9.5"])(**CALL, output_type="latent", generator=_seed()).frames
    _compare(expected, ours(**CALL, output_type="latent", generator=_seed()).frames)


def test_original_image_latents(ltx_folders, monkeypatch):
    """With noise on what is given, and a posterior that is drawn from."""
    noise = _tokens_drawn()
    _known_noise(monkeypatch, noise)
    image = PIL.Image.fromarray(_clip()[0])
    generator = _seed()
    torch.randn(1, 18, 8, generator=generator)  # stands for the reference's own draw
    reference = _load(LTXConditionPipeline, ltx_folders["0.9.5"])
    call = {**CALL, "output_type": "latent", "image_cond_noise_scale": 0.15}
    expected = reference(conditions=[LTXVideoCondition(image=image)], **call, generator=generator).frames
    ours = _load(ImageToVideoPipeline, ltx_folders["0.9.5"], convention="original")
    _compare(expected, ours(image=image, **CALL, input_crf=0, output_type="latent", generator=_seed()).frames)


def test_original_decoding_mixes_before_denormalising(ltx_folders):
    pipeline = _load(TextToVideoPipeline, ltx_folders["0.9.5"], convention="original")
    generator = _seed()
    latents = pipeline(**CALL, output_type="latent", generator=generator).frames
    noise = torch.randn(latents.shape, generator=generator)
    with torch.no_grad():
        mixed = pipeline.vae.denormalize(0.975 * latents + 0.025 * noise)
        video = pipeline.vae.decode(mixed, torch.tensor([0.05])).sample
    expected = (video / 2 + 0.5).clamp(0, 1).permute(0, 2, 1, 3, 4)
    frames = pipeline(**CALL, output_type="pt", generator=_seed()).frames
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-5)
    other = _load(TextToVideoPipeline, ltx_folders["0.9.5"], convention="ltx-condition")
    elsewhere = {"decode_timestep": 0.05, "decode_noise_scale": 0.025, "output_type": "pt"}
    denormalised = other(latents=_tokens_drawn(), **CALL, **elsewhere, generator=generator).frames
    assert not torch.allclose(denormalised, expected, atol=1e-4)


def test_original_is_chosen_when_loading_and_saved(ltx_folders, tmp_path):
    pipeline = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.1"], convention="original")
    assert (pipeline.convention.name, pipeline.convention.causal_coordinates) == ("original-0.9.0", False)
    filled = pipeline.fill_settings({"prompt": ""})
    chosen = (filled.height, filled.width, filled.num_frames, filled.frame_rate, filled.max_sequence_length)
    assert chosen == (704, 1216, 121, 30, 256)
    assert (filled.decode_timestep, filled.decode_noise_scale, filled.image_cond_noise_scale) == (0.05, 0.025, 0.15)
    pipeline.save_pretrained(tmp_path)
    again = MaskedPredictionPipeline.from_pretrained(tmp_path)
    assert again.convention.name == "original-0.9.0", "in every task"
    later = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"], convention="original")
    assert (later.convention.name, later.convention.causal_coordinates) == ("original", True)
