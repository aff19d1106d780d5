"""The same seed gives the same frames as diffusers' LTX pipelines, from the folders they save."""

import inspect
import json
from functools import cache

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from vgen.pipelines import (
    ImageToVideoPipeline,
    InterpolationPipeline,
    MaskedPredictionPipeline,
    TextToVideoPipeline,
    VideoCondition,
)

GENERATIONS = ("0.9.0", "0.9.1", "0.9.5")
TOLERANCE = 1e-4
CALL = {
    "prompt": "dance monkey",
    "negative_prompt": "blurry",
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "frame_rate": 25,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "guidance_rescale": 0.3,
    "max_sequence_length": 16,
    "output_type": "pt",
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}


def _pictures(seed, count=1):
    values = np.random.default_rng(seed).integers(0, 256, (count, 64, 96, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(value) for value in values]


@cache
def _load(cls, folder, plain_scheduler=False):
    options = {"scheduler": FlowMatchEulerDiscreteScheduler()} if plain_scheduler else {}
    pipeline = cls.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _seed(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def _compare(reference, ours):
    assert ours.shape == reference.shape
    assert reference.std() > 0.05
    torch.testing.assert_close(ours, reference, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 1.0}, {"guidance_scale": 6.0, "guidance_rescale": 0.0}])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_text_to_video(ltx_folders, generation, guidance):
    call = {**CALL, **guidance}
    reference = _load(LTXPipeline, ltx_folders[generation])(**call, generator=_seed(0)).frames
    ours = _load(TextToVideoPipeline, ltx_folders[generation])(**call, generator=_seed(0)).frames
    _compare(reference, ours)


def test_text_to_video_of_a_batch(ltx_folders):
    call = {**CALL, "prompt": ["dance monkey", "a slow train"], "negative_prompt": ["blurry", "fast"]}
    for generators in ((5,), (5, 6)):
        reference = _load(LTXPipeline, ltx_folders["0.9.5"])(**call, generator=_seed(*generators)).frames
        ours = _load(TextToVideoPipeline, ltx_folders["0.9.5"])(**call, generator=_seed(*generators)).frames
        _compare(reference, ours)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_image_to_video(ltx_folders, generation):
    (image,) = _pictures(1)
    reference = _load(LTXImageToVideoPipeline, ltx_folders[generation])(image=image, **CALL, generator=_seed(0)).frames
    ours = _load(ImageToVideoPipeline, ltx_folders[generation])(image=image, **CALL, generator=_seed(0)).frames
    _compare(reference, ours)


CONDITIONS = {
    "nothing": [],
    "first frame": [(1, 1, 0, 1.0)],
    "keyframes": [(1, 1, 0, 1.0), (2, 1, 8, 0.7)],
    "keyframe off the grid, last frame": [(1, 1, 5, 0.4), (2, 1, 16, 1.0)],
    "soft prefix": [(3, 9, 0, 0.9)],
    "later clip": [(4, 9, 8, 0.8)],
    "hard later clip": [(4, 9, 8, 1.0), (1, 1, 0, 1.0)],
}


@pytest.mark.parametrize("case", CONDITIONS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_masked_prediction(ltx_folders, generation, case):
    theirs, ours = [], []
    for seed, count, frame_index, strength in CONDITIONS[case]:
        pictures = _pictures(seed, count)
        material = {"image": pictures[0]} if count == 1 else {"video": pictures}
        theirs.append(LTXVideoCondition(**material, frame_index=frame_index, strength=strength))
        ours.append(VideoCondition(pictures, frame_index, strength))
    pipeline = _load(LTXConditionPipeline, ltx_folders[generation], True)
    reference = pipeline(conditions=theirs or None, **CALL, generator=_seed(0)).frames
    pipeline = _load(MaskedPredictionPipeline, ltx_folders[generation], True)
    _compare(reference, pipeline(conditions=ours, **CALL, generator=_seed(0)).frames)


def test_a_later_clip_longer_than_its_prefix(ltx_folders):
    pictures, call = _pictures(4, 17), {**CALL, "num_frames": 33}
    condition = LTXVideoCondition(video=pictures, frame_index=8, strength=0.8)
    pipeline = _load(LTXConditionPipeline, ltx_folders["0.9.5"], True)
    reference = pipeline(conditions=[condition], **call, generator=_seed(0)).frames
    pipeline = _load(MaskedPredictionPipeline, ltx_folders["0.9.5"], True)
    ours = pipeline(conditions=[VideoCondition(pictures, 8, 0.8)], **call, generator=_seed(0)).frames
    _compare(reference, ours)


def test_interpolation(ltx_folders):
    (first,), (last,) = _pictures(1), _pictures(2)
    conditions = [LTXVideoCondition(image=first), LTXVideoCondition(image=last, frame_index=16)]
    pipeline = _load(LTXConditionPipeline, ltx_folders["0.9.5"], True)
    reference = pipeline(conditions=conditions, **CALL, generator=_seed(0)).frames
    pipeline = _load(InterpolationPipeline, ltx_folders["0.9.5"], True)
    _compare(reference, pipeline(first=first, last=last, **CALL, generator=_seed(0)).frames)


def test_a_folder_of_the_condition_pipeline_follows_it_in_every_task(ltx_folders, tmp_path):
    (image,) = _pictures(1)
    reference_pipeline = _load(LTXConditionPipeline, ltx_folders["0.9.5"], True)
    reference_pipeline.save_pretrained(tmp_path)
    text = reference_pipeline(**CALL, generator=_seed(0)).frames
    _compare(text, _load(TextToVideoPipeline, tmp_path)(**CALL, generator=_seed(0)).frames)
    first = reference_pipeline(conditions=LTXVideoCondition(image=image), **CALL, generator=_seed(0)).frames
    _compare(first, _load(ImageToVideoPipeline, tmp_path)(image=image, **CALL, generator=_seed(0)).frames)


@pytest.mark.parametrize(
    ("reference", "ours"),
    [
        (LTXPipeline, TextToVideoPipeline),
        (LTXImageToVideoPipeline, ImageToVideoPipeline),
        (LTXConditionPipeline, MaskedPredictionPipeline),
        (LTXConditionPipeline, InterpolationPipeline),
    ],
)
def test_defaults_are_those_of_the_reference(ltx_folders, reference, ours):
    theirs = {name: p.default for name, p in inspect.signature(reference.__call__).parameters.items()}
    filled = _load(ours, ltx_folders["0.9.0"]).fill_settings({"prompt": ""})
    compared = ("height", "width", "num_frames", "frame_rate", "num_inference_steps", "guidance_scale",
                "guidance_rescale", "max_sequence_length", "decode_timestep", "decode_noise_scale", "output_type",
                "num_videos_per_prompt")  # fmt: skip
    assert {name: getattr(filled, name) for name in compared} == {name: theirs[name] for name in compared}
    assert filled.image_cond_noise_scale == theirs.get("image_cond_noise_scale", 0.0)


def test_what_we_save_of_an_ltx_model_gives_the_same_frames(ltx_folders, tmp_path):
    pipeline = _load(TextToVideoPipeline, ltx_folders["0.9.1"])
    frames = pipeline(**CALL, generator=_seed(0)).frames
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert (index["convention"], index["transformer"]) == ("ltx", ["vgen", "VideoDiT"])
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is TextToVideoPipeline
    assert torch.equal(again(**CALL, generator=_seed(0)).frames, frames)


def test_our_components_run_in_the_reference_pipeline(ltx_folders):
    ours = _load(TextToVideoPipeline, ltx_folders["0.9.5"])
    reference = LTXPipeline.from_pretrained(ltx_folders["0.9.5"], transformer=ours.transformer, vae=ours.vae)
    reference.set_progress_bar_config(disable=True)
    expected = _load(LTXPipeline, ltx_folders["0.9.5"])(**CALL, generator=_seed(0)).frames
    _compare(expected, reference(**CALL, generator=_seed(0)).frames)


def test_several_videos_a_prompt_with_a_timestep_conditioned_decoder(ltx_folders):
    pipeline = _load(TextToVideoPipeline, ltx_folders["0.9.5"])
    frames = pipeline(**CALL, num_videos_per_prompt=2, generator=_seed(0, 1)).frames
    for index in range(2):
        alone = _load(LTXPipeline, ltx_folders["0.9.5"])(**CALL, generator=_seed(index)).frames
        _compare(alone, frames[index : index + 1])
