"""Where arguments come from, and the shared signature."""

import inspect

import pytest

from vgen.errors import CheckpointError, RequestError
from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline
from vgen.pipelines.call.conventions import CONVENTIONS, LTX, NATIVE, convention_named, from_model_index
from vgen.pipelines.call.settings import GenerationSettings

SIZE = {"height": 64, "width": 64, "num_frames": 17, "frame_rate": 8.0}


def test_the_caller_then_the_model_then_the_convention():
    model = {**SIZE, "guidance_scale": 5.0, "negative_prompt": "blurry"}
    filled = GenerationSettings.fill({"prompt": "a", "height": 32, "width": None}, model, NATIVE.defaults)
    assert (filled.height, filled.width) == (32, 64)
    assert filled.guidance_scale == 5.0
    assert filled.negative_prompt == "blurry"
    assert filled.num_inference_steps == 50
    assert filled.output_type == "pil"
    explicit = GenerationSettings.fill(
        {"prompt": "a", "negative_prompt": "", "guidance_scale": 0.0}, model, LTX.defaults
    )
    assert explicit.negative_prompt == ""
    assert explicit.guidance_scale == 0.0


def test_what_nobody_gives_is_refused():
    with pytest.raises(RequestError, match="pass height="):
        GenerationSettings.fill({"prompt": "a"}, NATIVE.defaults)


def test_unknown_arguments_are_refused_by_name():
    with pytest.raises(TypeError, match="'num_frame' is not an argument: did you mean 'num_frames'"):
        GenerationSettings.fill({"num_frame": 3}, SIZE, NATIVE.defaults)
    with pytest.raises(TypeError, match="'zzz'"):
        GenerationSettings.fill({"zzz": 3}, SIZE, NATIVE.defaults)


def test_batch():
    filled = GenerationSettings.fill({"prompt": ["a", "b"], "num_videos_per_prompt": 3}, SIZE, NATIVE.defaults)
    assert (filled.num_prompts, filled.batch_size) == (2, 6)


def test_every_convention_fills_everything_but_sizes():
    for convention in CONVENTIONS.values():
        GenerationSettings.fill({"prompt": "a"}, SIZE, convention.defaults)
        assert convention_named(convention.conditions_name).conditions_name == convention.conditions_name
    with pytest.raises(CheckpointError, match="use one of vgen, ltx"):
        convention_named("ltx2")


def test_signatures_show_all_arguments():
    for cls, own in ((TextToVideoPipeline, ["prompt", "negative_prompt"]), (ImageToVideoPipeline, ["image", "prompt"])):
        parameters = inspect.signature(cls.__call__).parameters
        assert list(parameters)[1 : 1 + len(own)] == own
        assert set(GenerationSettings.model_fields) <= set(parameters)
        assert {f"    {name}: " for name in ("height", "known_passes")} <= {
            line[: line.find(": ") + 2] for line in cls.__call__.__doc__.splitlines()
        }
        assert parameters["height"].default is None
        assert parameters["output_type"].default == "pil"
        assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def test_model_indexes_are_translated():
    index = {
        "_class_name": "LTXConditionPipeline",
        "_diffusers_version": "0.32.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLLTXVideo"],
    }
    ours = from_model_index(index)
    assert ours["transformer"] == ["vgen", "VideoDiT"]
    assert ours["vae"] == ["vgen", "CausalVideoVAE"]
    assert ours["scheduler"] == index["scheduler"]
    assert ours["convention"] == "ltx-condition"
    native = {**index, "_class_name": "TextToVideoPipeline"}
    assert from_model_index(native) == native
