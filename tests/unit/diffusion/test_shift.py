"""Schedules that are shifted by token count: exact as far as there is one, refused beyond."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from vgen.diffusion.schedules import sample_training_sigmas
from vgen.errors import RequestError, ShapeError
from vgen.pipelines import TextToVideoPipeline
from vgen.request.steps import check_shift, most_tokens, resolution_shift_mu
from vgen.types import LatentShape, Strides, VideoShape

LTX = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}
STEEP = {**LTX, "base_shift": 2.0, "max_shift": 2.5, "base_image_seq_len": 16, "max_image_seq_len": 80}
LTX_STRIDES = Strides(8, 32, 32)


def _timesteps(config: dict, steps: int, tokens: int) -> torch.Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    base, most = config["base_image_seq_len"], config["max_image_seq_len"]  # the line, worked out by hand
    mu = config["base_shift"] + (tokens - base) / (most - base) * (config["max_shift"] - config["base_shift"])
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist(), mu=mu)
    return scheduler.timesteps


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("config", [LTX, STEEP, {**STEEP, "shift_terminal": None}])
@pytest.mark.parametrize("steps", [2, 10, 20, 50, 1000])
def test_the_limit_is_where_the_schedule_of_diffusers_has_two_equal_steps(config, steps) -> None:
    most = most_tokens(config, steps)
    assert bool((_timesteps(config, steps, most).diff() < 0).all())
    assert not bool((_timesteps(config, steps, most + 1).diff() < 0).all())


def test_published_sizes_are_far_below_it() -> None:
    for shape in (VideoShape(257, 704, 1216), VideoShape(161, 512, 704), VideoShape(257, 704, 1280)):
        check_shift(LTX, 50, shape, LTX_STRIDES)


@pytest.mark.parametrize(
    "change", [{"use_dynamic_shifting": False}, {"time_shift_type": "linear"}, {"use_karras_sigmas": True}]
)
def test_other_schedules_have_no_limit(change) -> None:
    assert most_tokens({**STEEP, **change}, 20) is None
    assert most_tokens(STEEP, 1) is None
    assert most_tokens({**STEEP, "max_shift": 2.0}, 20) is None  # a shift that does not grow


def test_the_refusal_names_the_largest_size_that_works() -> None:
    strides, steps = Strides(4, 16, 16), 20
    with pytest.raises(ShapeError, match=r"5,120 tokens.*at most 272 x 272 at num_frames=17, or give sigmas"):
        check_shift(STEEP, steps, VideoShape(17, 512, 512), strides)
    check_shift(STEEP, steps, VideoShape(17, 272, 272), strides)
    check_shift(STEEP, steps, VideoShape(17, 512, 512), strides, sigmas=(1.0, 0.5))


@given(
    shape=st.builds(LatentShape, st.integers(1, 40), st.integers(1, 60), st.integers(1, 60)),
    most=st.integers(1, 5000),
)
def test_the_largest_size_fits(shape: LatentShape, most: int) -> None:
    strides = Strides(4, 16, 16)
    found = VideoShape.of_latent(shape, strides).within(strides, most)
    assert found.latent(strides).num_tokens <= most
    if shape.num_tokens <= most:
        assert found == VideoShape.of_latent(shape, strides)


@pytest.fixture
def steep(make_native_components) -> TextToVideoPipeline:
    components = make_native_components()
    components["scheduler"] = FlowMatchEulerDiscreteScheduler(**STEEP)
    pipeline = TextToVideoPipeline(**components, defaults={"num_frames": 9, "frame_rate": 8.0})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_pipeline_refuses_before_it_encodes_the_prompt(steep, monkeypatch) -> None:
    size = {"height": 256, "width": 256}

    def computed(*_: object, **__: object) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(steep, "encode_prompt", computed)
    for steps in ({"num_inference_steps": 20}, {"num_inference_steps": 2, "draft_steps": 20}):
        with pytest.raises(ShapeError, match=r"width=256, height=256, num_frames=9 is 3,072 tokens"):
            steep("a ball", **size, **steps)


def test_a_schedule_by_hand_needs_no_shift(steep) -> None:
    frames = steep("a ball", height=256, width=256, sigmas=[1.0, 0.5], output_type="latent").frames
    assert bool(torch.isfinite(frames).all())


def test_the_command_refuses_before_anything_is_loaded(paper_model, tmp_path, run_cli, monkeypatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", loaded)
    (paper_model / "scheduler" / "scheduler_config.json").write_text(json.dumps(STEEP))
    size = ["--width", "512", "--height", "512", "-o", tmp_path / "clip.mp4", "--model", paper_model]
    done = run_cli("generate", "a ball", *size)
    assert done.code == 2
    assert "width=512, height=512, num_frames=17 is 20,480 tokens" in done.err


def test_training_refuses_a_density_without_width() -> None:
    mu = resolution_shift_mu(5120, base_tokens=16, max_tokens=80, base_shift=2.0, max_shift=2.5)
    with pytest.raises(RequestError, match=r"num_tokens=5120 .* all noise levels 1"):
        sample_training_sigmas(4, 5120, mu=mu)
    sigmas = sample_training_sigmas(256, 27_588, torch.Generator().manual_seed(0))  # LTX-Video's largest
    assert len(sigmas.unique()) > 200
