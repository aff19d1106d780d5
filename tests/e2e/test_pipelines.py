"""The four pipelines from a saved folder of tiny random components."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import PipelineCallback
from safetensors.torch import load_file, save_file

from vgen.diffusion.guidance import ClassifierFreeGuidance
from vgen.errors import CheckpointError, NonFiniteError, RequestError, ShapeError
from vgen.pipelines import (
    BasePipeline,
    ImageToVideoPipeline,
    InterpolationPipeline,
    MaskedPredictionPipeline,
    TextToVideoPipeline,
    VideoCondition,
    VideoPipelineOutput,
)

ALL = (TextToVideoPipeline, ImageToVideoPipeline, MaskedPredictionPipeline, InterpolationPipeline)
FRAMES, SIDE = 9, 32


def _seed(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def _clip(frames=FRAMES, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, SIDE, SIDE, 3), dtype=np.uint8)


def _quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def text_to_video(tiny_pipeline_folder):
    return _quiet(TextToVideoPipeline.from_pretrained(tiny_pipeline_folder))


@pytest.fixture(scope="module")
def pipelines(text_to_video):
    return {cls: _quiet(cls(**text_to_video.components)) for cls in ALL}


def test_defaults_come_from_the_model(text_to_video):
    output = text_to_video("a red circle", generator=_seed(0))
    assert isinstance(output, VideoPipelineOutput)
    (frames,) = output.frames
    assert len(frames) == FRAMES
    assert frames[0].size == (SIDE, SIDE)
    assert text_to_video.num_timesteps == 3
    assert text_to_video.guidance_scale == 2.0


def test_output_types(text_to_video):
    outputs = {
        kind: text_to_video("a", output_type=kind, generator=_seed(0)).frames for kind in ("pil", "np", "pt", "latent")
    }
    assert outputs["pt"].shape == (1, FRAMES, 3, SIDE, SIDE)
    assert outputs["latent"].shape == (1, 4, 3, 4, 4)
    assert outputs["np"].shape == (1, FRAMES, SIDE, SIDE, 3)
    assert outputs["np"].min() >= 0
    assert outputs["np"].max() <= 1
    np.testing.assert_allclose(outputs["np"][0], outputs["pt"][0].permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(np.asarray(outputs["pil"][0][4]), np.round(outputs["np"][0, 4] * 255), atol=1)
    (alone,) = text_to_video("a", output_type="pt", generator=_seed(0), return_dict=False)
    assert torch.equal(alone, outputs["pt"])


def test_saved_and_loaded_gives_the_same_frames(text_to_video, tmp_path):
    frames = text_to_video("a", output_type="pt", generator=_seed(0)).frames
    text_to_video.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "TextToVideoPipeline"
    assert index["transformer"] == ["vgen", "VideoDiT"]
    assert index["vae"] == ["vgen", "CausalVideoVAE"]
    assert index["defaults"]["num_frames"] == FRAMES
    for loader in (TextToVideoPipeline, DiffusionPipeline):
        again = _quiet(loader.from_pretrained(tmp_path))
        assert type(again) is TextToVideoPipeline
        assert torch.equal(again("a", output_type="pt", generator=_seed(0)).frames, frames)


def test_components_are_shared(text_to_video, pipelines):
    for cls in ALL:
        explicit = cls(**text_to_video.components, **text_to_video.parameters)
        for other in (pipelines[cls], cls.from_pipe(text_to_video), explicit):
            assert other.transformer is text_to_video.transformer
            assert other.config.defaults == text_to_video.config.defaults
            assert other.config.convention == "vgen"


def test_seeds(text_to_video):
    first, same, other = (
        text_to_video("a", output_type="pt", generator=_seed(seed)).frames for seed in (0, 0, 1)
    )  # fmt: skip
    assert torch.equal(first, same)
    assert (first - other).abs().max() > 0.01


def test_a_list_of_generators_gives_each_clip_what_it_gets_alone(pipelines):
    prompts, last = ["a red circle", "a blue square moves"], _clip(1, 5)
    calls = {
        TextToVideoPipeline: {},
        ImageToVideoPipeline: {"image": _clip(1)[0]},
        MaskedPredictionPipeline: {"conditions": [VideoCondition(_clip(5), 4, 0.6)], "image_cond_noise_scale": 0.15},
        InterpolationPipeline: {"first": _clip(1)[0], "last": last[0]},
    }
    for cls, call in calls.items():
        together = pipelines[cls](prompt=prompts, **call, output_type="pt", generator=_seed(3, 4)).frames
        for index, prompt in enumerate(prompts):
            alone = pipelines[cls](prompt=prompt, **call, output_type="pt", generator=_seed(3 + index)).frames
            torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-4)


def test_several_videos_for_each_prompt(text_to_video):
    frames = text_to_video(["a", "b"], num_videos_per_prompt=2, output_type="pt", generator=_seed(0, 1, 2, 3)).frames
    alone = text_to_video("b", output_type="pt", generator=_seed(2)).frames
    torch.testing.assert_close(frames[2:3], alone, rtol=0, atol=1e-4)


def test_one_picture_for_each_prompt(pipelines):
    pipeline, images = pipelines[ImageToVideoPipeline], _clip(2)
    frames = pipeline(image=list(images), prompt=["a", "b"], output_type="pt", generator=_seed(0, 1)).frames
    alone = pipeline(image=images[1], prompt="b", output_type="pt", generator=_seed(1)).frames
    torch.testing.assert_close(frames[1:2], alone, rtol=0, atol=1e-4)
    with pytest.raises(RequestError, match="2 images for 3 prompts"):
        pipeline(image=images, prompt=["a", "b", "c"])


def test_the_first_frame_is_the_picture_as_the_vae_sees_it(pipelines):
    pipeline, image = pipelines[ImageToVideoPipeline], _clip(1)
    latents = pipeline(image=image[0], prompt="", output_type="latent", generator=_seed(0)).frames
    pixels = torch.from_numpy(image).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        given = pipeline.vae.normalize(pipeline.vae.encode(pixels).latent_dist.mean)
    torch.testing.assert_close(latents[:, :, :1], given, rtol=0, atol=1e-5)


def test_guidance_one_is_the_conditional_branch_whatever_the_negative_prompt(text_to_video):
    guided = text_to_video("a", guidance_scale=4.0, negative_prompt="b", output_type="pt", generator=_seed(0)).frames
    assert text_to_video.do_classifier_free_guidance
    first, second = (
        text_to_video("a", guidance_scale=1.0, negative_prompt=negative, output_type="pt", generator=_seed(0)).frames
        for negative in ("b", "c")
    )
    assert not text_to_video.do_classifier_free_guidance
    assert torch.equal(first, second)
    assert not torch.equal(first, guided)


class _SeparatePasses(ClassifierFreeGuidance):
    """The same guidance, whose branches cannot share a forward."""

    def branches(self, step):
        first, second = super().branches(step)
        return first, type(second)(second.name, second.negative, {"num_frames": 3})


def test_a_guidance_strategy_and_separate_passes(text_to_video):
    call = {"prompt": "a", "negative_prompt": "b", "output_type": "pt"}
    scaled = text_to_video(**call, guidance_scale=4.0, generator=_seed(0)).frames
    strategy = text_to_video(**call, guidance=ClassifierFreeGuidance(4.0), generator=_seed(0)).frames
    separate = text_to_video(**call, guidance=_SeparatePasses(4.0), generator=_seed(0)).frames
    assert torch.equal(scaled, strategy)
    torch.testing.assert_close(separate, scaled, rtol=0, atol=1e-5)


def test_given_embeddings_and_latents(text_to_video):
    expected = text_to_video("a", output_type="pt", generator=_seed(0)).frames
    text = text_to_video.encode_prompt("a", "", max_sequence_length=24)
    assert text.prompt_attention_mask.dtype == torch.bool
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    noise = torch.randn(1, 4, 3, 4, 4, generator=_seed(0))
    tokens = noise.permute(0, 2, 3, 4, 1).reshape(1, 48, 4)
    for latents in (noise, tokens):
        call = {**{name: getattr(text, name) for name in names}, "latents": latents}
        assert torch.equal(text_to_video(**call, output_type="pt").frames, expected)
    only_positive = {name: getattr(text, name) for name in names[:2]}
    frames = text_to_video(**only_positive, output_type="pt", generator=_seed(0)).frames
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-5)


def test_padding_does_not_change_the_result(text_to_video):
    short, long = (
        text_to_video("a", max_sequence_length=length, output_type="pt", generator=_seed(0)).frames
        for length in (8, 60)
    )
    torch.testing.assert_close(short, long, rtol=0, atol=1e-4)


def test_callback_interrupt_and_progress(text_to_video, capsys):
    seen = []

    def callback(pipeline, index, timestep, tensors):
        seen.append((index, float(timestep), sorted(tensors), float(pipeline.current_timestep)))
        pipeline._interrupt = index == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    latents = text_to_video("a", output_type="latent", callback_on_step_end=callback,
                            callback_on_step_end_tensor_inputs=names).frames  # fmt: skip
    assert [entry[0] for entry in seen] == [0, 1]
    assert seen[0][2] == sorted(names)
    assert seen[0][1] == seen[0][3] == 1000.0
    assert not latents.any()
    assert text_to_video.current_timestep is None


def test_diffusers_callback_objects(text_to_video):
    class Halve(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return {"latents": callback_kwargs["latents"] / 2}

    plain = text_to_video("a", output_type="latent", generator=_seed(0)).frames
    halved = text_to_video("a", output_type="latent", generator=_seed(0),
                           callback_on_step_end=Halve(cutoff_step_ratio=None, cutoff_step_index=1)).frames  # fmt: skip
    assert not torch.equal(plain, halved)


def test_nan_is_named(text_to_video):
    def poison(pipeline, index, timestep, tensors):
        return {"latents": tensors["latents"] * float("nan")} if index == 0 else {}

    with pytest.raises(NonFiniteError, match=r"Step 2 of 3 .*torch\.float32"):
        text_to_video("a", callback_on_step_end=poison)


def test_bfloat16(tiny_pipeline_folder):
    pipeline = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder, torch_dtype=torch.bfloat16, device="cpu")
    _quiet(pipeline)
    assert pipeline.transformer.dtype == torch.bfloat16
    frames = pipeline("a", output_type="pt", generator=_seed(0)).frames
    assert torch.isfinite(frames).all()
    assert frames.dtype == torch.float32


def test_a_transformer_whose_tokens_are_patches(make_native_components):
    pipeline = _quiet(ImageToVideoPipeline(**make_native_components(patch_size=2)))
    call = {"prompt": "a", "height": 32, "width": 32, "num_frames": 9, "frame_rate": 8, "num_inference_steps": 2,
            "max_sequence_length": 24}  # fmt: skip
    frames = pipeline(image=_clip(1)[0], **call, output_type="pt", generator=_seed(0)).frames
    assert frames.shape == (1, 9, 3, 32, 32)
    with pytest.raises(ShapeError, match=r"width=24 .*use 16 or 32"):
        pipeline(image=_clip(1)[0], **{**call, "width": 24})


# Known pixels.


def _predict(pipelines, *conditions, **call):
    call = {"prompt": "", "output_type": "pt", "generator": _seed(0), **call}
    return pipelines[MaskedPredictionPipeline](conditions=list(conditions), **call).frames[0]


def _as_pt(clip):
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255


def test_nothing_known_is_text_to_video(pipelines, text_to_video):
    expected = text_to_video("a", output_type="pt", generator=_seed(0)).frames[0]
    assert torch.equal(_predict(pipelines, prompt="a"), expected)


def test_hidden_pixels_change_nothing(pipelines, monkeypatch):
    clip, other = _clip(seed=1), _clip(seed=2)
    mask = np.ones((FRAMES, SIDE, SIDE), dtype=bool)
    mask[3:, 8:24, 10:30] = False
    altered = np.where(mask[..., None], clip, other)
    assert (altered != clip).any()
    inputs = []
    transformer = pipelines[MaskedPredictionPipeline].transformer
    hook = transformer.register_forward_hook(lambda module, args, kwargs, out: inputs.append(kwargs), with_kwargs=True)
    results = [_predict(pipelines, VideoCondition(frames, mask=mask)) for frames in (clip, altered)]
    hook.remove()
    assert torch.equal(*results)
    for before, after in zip(inputs[:3], inputs[3:], strict=True):
        for name in ("hidden_states", "timestep", "video_coords"):
            assert torch.equal(before[name], after[name])
    assert (inputs[0]["timestep"] == 0).any(), "something is given"


def test_known_cells_are_encoded_again_beside_what_was_made(pipelines):
    clip, mask = _clip(seed=1), np.ones((FRAMES, SIDE, SIDE), dtype=bool)
    mask[:, 8:16, 8:16] = False
    condition, call = VideoCondition(clip, mask=mask), {"keep_known_pixels": False, "output_type": "latent"}
    sampled, renewed = (_predict(pipelines, condition, known_passes=passes, **call) for passes in (0, 1))
    vae = pipelines[MaskedPredictionPipeline].vae
    made = vae.decode(vae.denormalize(sampled[None])).sample.clamp(-1, 1)
    given = _as_pt(clip).transpose(0, 1)[None] * 2 - 1
    whole = vae.normalize(vae.encode(torch.where(torch.from_numpy(mask), given, made)).latent_dist.mean)[0]
    # Every cell of this small clip is known or lies beside a known one.
    torch.testing.assert_close(renewed, whole, rtol=0, atol=1e-5)
    assert not torch.allclose(sampled, renewed, atol=1e-3)
    plain = [_predict(pipelines, VideoCondition(clip[:5]), known_passes=passes, **call) for passes in (0, 1)]
    assert torch.equal(*plain), "without a mask nothing is known better afterwards"


@pytest.mark.parametrize("frame_index", [0, 4])
def test_masked_pixels_are_kept_unless_asked_otherwise(pipelines, frame_index):
    clip = _clip(5, seed=3)
    mask = torch.zeros(SIDE, SIDE)
    mask[:, :20] = 1
    condition = VideoCondition(clip, frame_index, mask=mask)
    kept, dropped = (_predict(pipelines, condition, keep_known_pixels=keep) for keep in (None, False))
    here = slice(frame_index, frame_index + 5)
    torch.testing.assert_close(kept[here, :, :, :20], _as_pt(clip)[..., :20], rtol=0, atol=1e-6)
    assert not torch.allclose(dropped[here, :, :, :20], _as_pt(clip)[..., :20], atol=1e-2)
    assert torch.equal(kept[here, :, :, 20:], dropped[here, :, :, 20:])
    outside = [index for index in range(FRAMES) if not frame_index <= index < frame_index + 5]
    assert torch.equal(kept[outside], dropped[outside])


def test_unmasked_pixels_are_kept_only_when_asked(pipelines):
    clip = _clip(5, seed=4)
    default, kept, soft = (
        _predict(pipelines, VideoCondition(clip, strength=strength), keep_known_pixels=keep)
        for strength, keep in ((1.0, None), (1.0, True), (0.9, True))
    )
    torch.testing.assert_close(kept[:5], _as_pt(clip), rtol=0, atol=1e-6)
    assert torch.equal(kept[5:], default[5:])
    for frames in (default, soft):
        assert not torch.allclose(frames[:5], _as_pt(clip), atol=1e-2)
    pictures = pipelines[MaskedPredictionPipeline](
        conditions=VideoCondition(clip), prompt="", keep_known_pixels=True, generator=_seed(0)
    ).frames[0]
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures[:5]]), clip)


def test_strength_zero_is_not_given(pipelines):
    frames = _predict(pipelines, VideoCondition(_clip(1), strength=0.0))
    torch.testing.assert_close(frames, _predict(pipelines), rtol=0, atol=1e-5)


def test_negative_indices_count_from_the_end(pipelines):
    image = PIL.Image.fromarray(_clip(1)[0])
    counted, plain = (_predict(pipelines, VideoCondition(image, index)) for index in (-1, FRAMES - 1))
    assert torch.equal(counted, plain)


def test_interpolation_is_masked_prediction_of_both_ends(pipelines):
    first, last = _clip(2)
    expected = _predict(pipelines, VideoCondition(first), VideoCondition(last, -1))
    frames = pipelines[InterpolationPipeline](first=first, last=last, output_type="pt", generator=_seed(0)).frames[0]
    assert torch.equal(frames, expected)


def test_conditions_of_each_prompt(pipelines):
    pipeline, clips = pipelines[MaskedPredictionPipeline], [_clip(5, seed) for seed in (1, 2)]
    rows = [[VideoCondition(clip, strength=strength)] for clip, strength in zip(clips, (1.0, 0.5), strict=True)]
    call = {"output_type": "pt", "keep_known_pixels": True}
    frames = pipeline(conditions=rows, prompt=["a", "b"], generator=_seed(0, 1), **call).frames
    for index, prompt in enumerate(("a", "b")):
        alone = pipeline(conditions=rows[index], prompt=prompt, generator=_seed(index), **call).frames
        torch.testing.assert_close(frames[index : index + 1], alone, rtol=0, atol=1e-4)


# What is refused, and that nothing was computed.

BAD = {
    "height": ({"height": 36}, "height=36 .*use 32 or 40"),
    "known passes": ({"known_passes": -1}, "known_passes=-1 is outside 0 to 100"),
    "num_frames": ({"num_frames": 8}, "num_frames=8 .*use 5 or 9"),
    "steps": ({"num_inference_steps": 0}, "num_inference_steps=0"),
    "frame rate": ({"frame_rate": 0}, "frame_rate=0"),
    "no prompt": ({"prompt": None}, "prompt"),
    "prompt kind": ({"prompt": 3}, "prompt=3 is not text"),
    "negative prompts": ({"negative_prompt": ["a", "b"]}, "2 texts for 1 prompt"),
    "guidance": ({"guidance_scale": -1}, "guidance_scale=-1"),
    "rescale": ({"guidance_rescale": 2.0}, "guidance_rescale=2"),
    "output": ({"output_type": "gif"}, "output_type='gif' is not known: use pil"),
    "generators": ({"generator": [torch.Generator()] * 2}, "2 generators for 1 clip"),
    "latents": ({"latents": torch.zeros(1, 4, 3, 4, 5)}, r"must be \(1, 4, 3, 4, 4\)"),
    "embeds without mask": ({"prompt": None, "prompt_embeds": torch.zeros(1, 4, 32)}, "prompt_attention_mask"),
    "callback tensors": ({"callback_on_step_end_tensor_inputs": ["noise"]}, "noise"),
    "decode timestep": ({"decode_timestep": 50}, "decode_timestep=50"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_computed(text_to_video, monkeypatch, case):
    def fail(*args, **kwargs):
        raise AssertionError("computed something")

    monkeypatch.setattr(text_to_video, "encode_prompt", fail)
    monkeypatch.setattr(text_to_video, "prepare_latents", fail)
    call, message = BAD[case]
    with pytest.raises(RequestError, match=message):
        text_to_video(**{"prompt": "a", **call})


def test_a_misspelt_argument_names_the_right_one(text_to_video):
    with pytest.raises(TypeError, match="did you mean 'guidance_scale'"):
        text_to_video("a", guidance_scal=3.0)


def test_a_model_without_defaults_needs_sizes(make_native_components):
    with pytest.raises(RequestError, match="height is not given"):
        TextToVideoPipeline(**make_native_components())("a")


@pytest.mark.parametrize("cls", ALL)
def test_broken_folders_are_refused(cls, tmp_path, tiny_pipeline_folder):
    with pytest.raises(CheckpointError, match="no-such-model"):
        cls.from_pretrained("no-such-model")
    (tmp_path / "model_index.json").write_text((tiny_pipeline_folder / "model_index.json").read_text())
    with pytest.raises(CheckpointError, match="missing"):
        cls.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "what"), [("transformer", "lack 1 tensor: proj_out.bias"), ("vae", "hold 1 unknown tensor: stranger")]
)
def test_missing_and_unknown_tensors_are_refused(tmp_path, tiny_pipeline_folder, name, what):
    folder = shutil.copytree(tiny_pipeline_folder, tmp_path / "broken")
    file = folder / name / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    if name == "transformer":
        del tensors["proj_out.bias"]
    else:
        tensors["stranger"] = torch.zeros(1)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=what):
        TextToVideoPipeline.from_pretrained(folder)


def test_contract_with_diffusers():
    for cls in ALL:
        assert issubclass(cls, BasePipeline)
        assert cls.model_cpu_offload_seq == "text_encoder->transformer->vae"
        assert cls._optional_components == []
        assert cls._callback_tensor_inputs == ["latents", "prompt_embeds", "negative_prompt_embeds"]
        assert getattr(__import__("diffusers"), cls.__name__) is cls
