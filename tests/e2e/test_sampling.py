"""Schedules, guidances and video to video through whole pipelines of tiny random components."""

import json
import shutil

import numpy as np
import pytest
import torch

from vgen.diffusion.guidance import AdaptiveProjectedGuidance, ComposedGuidance, SpatioTemporalGuidance
from vgen.errors import RequestError
from vgen.io.media.video import read_video
from vgen.pipelines import TextToVideoPipeline, VideoToVideoPipeline
from vgen.types import SKIP_MODES

FRAMES, SIDE = 9, 32


def _seed(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def _clip(frames=FRAMES, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def video_to_video(pipe):
    pipeline = VideoToVideoPipeline.from_pipe(pipe)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def generate(pipe):
    def run(**call):
        call = {"prompt": "a", "negative_prompt": "b", "output_type": "latent", "generator": _seed(0), **call}
        return pipe(**call).frames

    return run


@pytest.fixture
def transformer_calls(pipe):
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    yield calls
    hook.remove()


def test_schedules_by_hand(pipe, generate, transformer_calls):
    by_sigmas = generate(sigmas=[1.0, 0.8, 0.3])
    assert [round(float(call["timestep"][0])) for call in transformer_calls] == [1000, 800, 300]
    assert pipe.num_timesteps == 3
    torch.testing.assert_close(generate(timesteps=[1000, 800, 300, 0]), by_sigmas, rtol=0, atol=1e-5)
    assert not torch.allclose(generate(), by_sigmas, atol=1e-3)
    own = pipe.scheduler.sigmas[:-1].tolist()
    torch.testing.assert_close(generate(sigmas=own), generate(), rtol=0, atol=1e-5)


def test_one_step_is_finite(generate):
    assert torch.isfinite(generate(num_inference_steps=1)).all()


def test_stochastic_sampling(pipe, generate):
    plain, stochastic, again = (generate(stochastic_sampling=on) for on in (None, True, True))
    assert not torch.allclose(plain, stochastic, atol=1e-3)
    assert torch.equal(stochastic, again)
    assert pipe.scheduler.config.stochastic_sampling is False
    both = generate(prompt=["a", "c"], generator=_seed(0, 1), stochastic_sampling=True)
    torch.testing.assert_close(both[:1], stochastic, rtol=0, atol=1e-4)


GUIDANCES = {
    "cfg-star": {"cfg_star": True, "guidance_scale": 4.0},
    "a list": {"guidance_scale": [1.0, 5.0, 3.0], "guidance_rescale": [0.0, 0.5, 1.0]},
    **{mode: {"stg_scale": 1.5, "stg_blocks": [1], "stg_mode": mode, "guidance_rescale": 0.7} for mode in SKIP_MODES},
    "stg alone": {"guidance_scale": 1.0, "stg_scale": 1.5, "stg_blocks": [0]},
    "stg by step": {"stg_scale": [0.0, 1.0, 2.0], "stg_blocks": [[0], [], [0, 1]]},
    "by sigma": {"guidance_scale": [1.0, 6.0], "guidance_sigmas": [1.0, 0.9]},
    "apg": {"guidance": AdaptiveProjectedGuidance(4.0)},
    "apg and stg": {"guidance": ComposedGuidance((AdaptiveProjectedGuidance(4.0), SpatioTemporalGuidance([1])), 0.5)},
}


@pytest.mark.parametrize("case", GUIDANCES)
def test_batched_and_separate_passes_agree(generate, case, transformer_calls):
    guidance = GUIDANCES[case]
    batched = generate(**guidance)
    passes = len(transformer_calls)
    assert passes == 3, "one forward a step"
    separate = generate(**guidance, guidance_batching="separate")
    assert len(transformer_calls) > 2 * passes
    torch.testing.assert_close(separate, batched, rtol=0, atol=1e-6 * float(batched.abs().max()) + 1e-6)
    assert not torch.allclose(batched, generate(), atol=1e-3), "the guidance does something"


def test_the_order_of_a_batch(generate, transformer_calls):
    generate(stg_scale=1.0, stg_blocks=[1], num_inference_steps=1, sigmas=[1.0])
    (call,) = transformer_calls
    assert [skip and skip.blocks for skip in call["skip_layers"]] == [None, None, (1,)]
    embeds = call["encoder_hidden_states"]
    assert torch.equal(embeds[1], embeds[2])
    assert not torch.equal(embeds[0], embeds[1])


def test_guidance_that_is_off_is_the_plain_result(generate):
    assert torch.equal(generate(stg_scale=0.0, stg_blocks=[1], stg_mode="attention_skip"), generate())
    assert torch.equal(generate(stg_scale=[0.0] * 3, stg_blocks=[1]), generate())


BAD = {
    "list": ({"guidance_scale": [3.0] * 4}, "guidance_scale holds 4 values for 3 steps"),
    "stg list": ({"stg_scale": [1.0], "stg_blocks": [1]}, "stg_scale holds 1 value for 3 steps"),
    "block": ({"stg_scale": 1.0, "stg_blocks": [2]}, r"stg_blocks=\[2\] are not there: the transformer has 0 to 1"),
    "residual": ({"stg_scale": 1.0, "stg_blocks": [1], "stg_mode": "residual"}, "stg_mode='residual'"),
    "no blocks": ({"stg_scale": 1.0}, "needs stg_blocks"),
    "batching": ({"guidance_batching": "both"}, "guidance_batching='both' is not known: use batched or separate"),
    "sigmas": ({"sigmas": [0.5, 0.9]}, "descend"),
    "both": ({"sigmas": [1.0], "timesteps": [1000]}, "both given"),
    "steps and sigmas": ({"sigmas": [1.0, 0.5], "num_inference_steps": 3}, "contradict"),
    "strength": ({"denoise_strength": 0.5}, r"denoise_strength=0\.5 needs a clip .*VideoToVideoPipeline"),
    "strength 0": ({"denoise_strength": 0.0}, "is outside 0.001 to 1; the nearest is 0.001"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_computed(pipe, monkeypatch, case):
    def fail(*args, **kwargs):
        raise AssertionError("computed something")

    monkeypatch.setattr(pipe, "encode_prompt", fail)
    monkeypatch.setattr(pipe, "prepare_latents", fail)
    call, message = BAD[case]
    with pytest.raises(RequestError, match=message):
        pipe("a", **call)


def test_a_distilled_model_holds_its_schedule(tiny_pipeline_folder, tmp_path):
    for place, allowed in (
        ("defaults", {"sigmas": [1.0, 0.5]}),
        ("scheduler", {"allowed_inference_steps": [1.0, 0.5]}),
    ):
        folder = shutil.copytree(tiny_pipeline_folder, tmp_path / place)
        file = folder / ("model_index.json" if place == "defaults" else "scheduler/scheduler_config.json")
        content = json.loads(file.read_text())
        (content["defaults"] if place == "defaults" else content).update(allowed)
        file.write_text(json.dumps(content))
        pipeline = TextToVideoPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        pipeline("a", output_type="latent")
        assert pipeline.scheduler.sigmas.tolist() == [1.0, 0.5, 0.0]
        with pytest.raises(RequestError, match="num_inference_steps=4: this model was distilled for 2 steps"):
            pipeline("a", num_inference_steps=4)
    with pytest.raises(RequestError, match=r"sigmas holds 0\.7, .* the nearest is 0\.5"):
        pipeline("a", sigmas=[1.0, 0.7])


# Video to video.


def test_full_strength_is_text_to_video(pipe, video_to_video):
    call = {"prompt": "a", "output_type": "pt"}
    expected = pipe(**call, generator=_seed(3)).frames
    for seed in (0, 1):
        frames = video_to_video(_clip(seed=seed), **call, denoise_strength=1.0, generator=_seed(3)).frames
        assert torch.equal(frames, expected)


def test_less_strength_keeps_more_of_the_clip(video_to_video):
    clip = _clip()
    call = {"prompt": "a", "output_type": "latent", "num_inference_steps": 10}
    pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        given = video_to_video.vae.normalize(video_to_video.vae.encode(pixels).latent_dist.mean)
    distances = []
    for strength in (0.1, 0.5, 1.0):
        latents = video_to_video(clip, denoise_strength=strength, generator=_seed(0), **call).frames
        distances.append(float((latents - given).square().mean()))
        assert video_to_video.num_timesteps == round(10 * strength)
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[2]


def test_the_start_is_the_clip_noised_to_the_first_sigma(video_to_video):
    clip, seen = _clip(), []
    hook = video_to_video.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    video_to_video(clip, "a", denoise_strength=0.5, num_inference_steps=4, guidance_scale=1.0, generator=_seed(0))
    hook.remove()
    sigma = float(video_to_video.scheduler.sigmas[0])
    assert 0 < sigma < 1
    noise = torch.randn(1, 4, 3, 4, 4, generator=_seed(0))
    pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        given = video_to_video.vae.normalize(video_to_video.vae.encode(pixels).latent_dist.mean)
    expected = ((1 - sigma) * given + sigma * noise).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_a_clip_for_each_prompt(video_to_video):
    clips, call = [_clip(seed=1), _clip(seed=2)], {"output_type": "latent", "denoise_strength": 0.7}
    together = video_to_video(clips, ["a", "b"], generator=_seed(0, 1), **call).frames
    alone = video_to_video(clips[1], "b", generator=_seed(1), **call).frames
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)
    shared = video_to_video(clips[1], ["a", "b"], generator=_seed(0, 1), **call).frames
    torch.testing.assert_close(shared[1:], alone, rtol=0, atol=1e-4)


def test_the_size_is_that_of_the_clip(video_to_video):
    frames = video_to_video(_clip(5), "a", output_type="pt", generator=_seed(0)).frames
    assert frames.shape == (1, 5, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"video": None}, "video is not given"),
        ({"video": _clip(8)}, r"num_frames=8 .*use 5 or 9"),
        ({"video": _clip(5), "num_frames": 9}, "video has 5 frames and num_frames=9"),
        ({"video": _clip(9), "height": 64}, "32x32 and the clip 64x32"),
        ({"video": [_clip(9)] * 2}, "2 clips for 1 prompt"),
        ({"video": _clip(9), "denoise_strength": 1.5}, r"denoise_strength=1\.5 is outside 0\.001 to 1"),
        ({"video": _clip(9), "denoise_strength": 0.1}, r"denoise_strength=0\.1 of 3 steps leaves none"),
        ({"video": _clip(9), "guidance_scale": [3.0] * 3}, "guidance_scale holds 3 values for 1 step"),
    ],
)
def test_bad_clips_are_refused(video_to_video, monkeypatch, call, message):
    monkeypatch.setattr(video_to_video, "encode_prompt", None)
    with pytest.raises(RequestError, match=message):
        video_to_video(prompt="a", **call)


def test_restyle_with_the_embedded_model(tmp_path, run_cli):
    clip, words = tmp_path / "clip.mp4", ("--seed", 1, "--steps", 3)
    assert run_cli("generate", "a red circle on a black background", "-o", clip, *words).code == 0
    done = run_cli("restyle", clip, "a blue circle on a black background", "-o", tmp_path / "b.mp4", *words,
                   "--strength", 0.7, "--stg-scale", 1, "--stg-blocks", 2)  # fmt: skip
    assert done.code == 0, done.err
    made, given = (read_video(path).frames for path in (tmp_path / "b.mp4", clip))
    assert made.shape == given.shape == (17, 64, 64, 3)
    assert (made != given).mean() > 0.01
    refused = run_cli("restyle", clip, "a", "-o", tmp_path / "c.mp4", "--stg-scale", 1, "--stg-blocks", 99)
    assert (refused.code, "stg_blocks=[99] are not there" in refused.err) == (2, True)
