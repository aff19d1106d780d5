"""A call in two passes, with tiny random models: what each pass is told, and what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vgen.diffusion.latent_statistics import match_statistics, tone_map
from vgen.errors import RequestError
from vgen.io.media.video import read_metadata, read_video
from vgen.models import LatentUpsampler
from vgen.pipelines import (
    ImageToVideoPipeline,
    InterpolationPipeline,
    MaskedPredictionPipeline,
    TwoPass,
    VideoCondition,
    VideoToVideoPipeline,
    load_upsampler,
)
from vgen.pipelines.coding.soften import soften
from vgen.request.request import ResolvedRequest
from vgen.request.two_pass_presets import presets

CALL = {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1.0, "output_type": "latent"}


def _upsampler(channels=4, **config):
    torch.manual_seed(1)
    model = LatentUpsampler(**{"in_channels": channels, "mid_channels": 32, "num_blocks_per_stage": 1, **config}).eval()
    return model


@pytest.fixture(scope="module")
def upsampler_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("upsampler")
    _upsampler().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two_pass(upsampler_folder):
    return TwoPass(load_upsampler(upsampler_folder))


@pytest.fixture
def task(pipe):
    def make(cls):
        pipeline = cls.from_pipe(pipe)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def calls(pipe):
    """What the transformer is called with."""
    found = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs), with_kwargs=True
    )
    yield found
    hook.remove()


@pytest.fixture
def between(two_pass, monkeypatch):
    """The latents of the first pass, and those made of them, of each run of `two_pass`."""
    found, plain = [], two_pass.enlarge

    def watched(vae, latents, device=None):
        found.append((latents, plain(vae, latents, device)))
        return found[-1][1]

    monkeypatch.setattr(two_pass, "enlarge", watched)
    return found


def _seed(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def _picture(seed=1, side=32):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def _steps(calls):
    return [(call["hidden_states"].shape[1], round(float(call["timestep"].max()), 1)) for call in calls]


def test_the_second_pass_starts_from_the_enlarged_latents_of_the_first(pipe, two_pass, calls, between):
    latents = pipe(**CALL, two_pass=two_pass, generator=_seed(0)).frames
    assert latents.shape == (1, 4, 3, 4, 4)
    ((small, large),) = between
    assert [tokens for tokens, _ in _steps(calls)] == [3 * 2 * 2] * 3 + [3 * 4 * 4]
    generator = _seed(0)
    torch.randn(1, 4, 3, 2, 2, generator=generator)
    noise = torch.randn(1, 4, 3, 4, 4, generator=generator)
    sigma = float(calls[-1]["timestep"].max()) / 1000
    assert 0 < sigma < 1
    start = ((1 - sigma) * large + sigma * noise).flatten(2).transpose(1, 2)
    torch.testing.assert_close(calls[-1]["hidden_states"], start, rtol=0, atol=1e-5)
    # The upsampler sees latents as the encoder gives them, and its output has the statistics of the small ones.
    vae, upsampler = pipe.vae, two_pass.upsampler
    with torch.no_grad():
        raised = vae.normalize(upsampler(vae.denormalize(small)))
    torch.testing.assert_close(large, match_statistics(raised, small), rtol=0, atol=1e-5)
    assert not torch.allclose(large, raised, atol=1e-2)
    torch.testing.assert_close(large.mean((2, 3, 4)), small.mean((2, 3, 4)), rtol=0, atol=1e-5)


def test_an_interrupt_in_the_first_pass_ends_both(pipe, two_pass, calls):
    def interrupt(pipeline, index, timestep, tensors):
        pipeline._interrupt = True
        return {}

    stopped = pipe(**CALL, two_pass=two_pass, generator=_seed(0), callback_on_step_end=interrupt).frames
    assert stopped.shape == (1, 4, 3, 4, 4)
    assert len(calls) == 1
    pipe(**CALL, two_pass=two_pass, generator=_seed(0))
    assert len(calls) == 5, "the next call is a new one"


def test_the_clip_has_the_size_asked_for(pipe, two_pass, calls):
    call = {**CALL, "height": 48, "width": 40, "two_pass": two_pass}
    frames = pipe(**{**call, "output_type": "pt"}, generator=_seed(0)).frames
    assert frames.shape == (1, 9, 3, 48, 40)
    assert {tokens for tokens, _ in _steps(calls)} == {3 * 3 * 3, 3 * 6 * 6}
    latents = pipe(**call, generator=_seed(0)).frames
    with torch.no_grad():
        video = pipe.vae.decode(pipe.vae.denormalize(latents)).sample
    video = (video / 2 + 0.5).clamp(0, 1)[0].transpose(0, 1)
    expected = torch.nn.functional.interpolate(video, (48, 40), mode="bilinear")
    torch.testing.assert_close(frames[0], expected, rtol=0, atol=1e-5)
    (pictures,) = pipe(**{**call, "output_type": "pil", "return_dict": False}, generator=_seed(0))
    assert (len(pictures[0]), pictures[0][0].size) == (9, (40, 48))


def test_seeds_and_batches(pipe, two_pass):
    call = {**CALL, "two_pass": two_pass, "guidance_scale": 3.0}
    together = pipe(**{**call, "prompt": ["a", "c"]}, generator=_seed(3, 4)).frames
    for index, (prompt, seed) in enumerate((("a", 3), ("c", 4))):
        alone = pipe(**{**call, "prompt": prompt}, generator=_seed(seed)).frames
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-4)
    assert torch.equal(pipe(**{**call, "prompt": "c"}, generator=_seed(4)).frames, alone)
    assert not torch.allclose(pipe(**{**call, "prompt": "c"}, generator=_seed(5)).frames, alone, atol=1e-2)
    several = pipe(**call, num_videos_per_prompt=2, generator=_seed(3, 4)).frames
    torch.testing.assert_close(several[:1], together[:1], rtol=0, atol=1e-4)


def test_a_prompt_is_encoded_once(pipe, two_pass):
    seen = []
    hook = pipe.text_encoder.register_forward_hook(lambda *_: seen.append(1))
    pipe(**{**CALL, "guidance_scale": 3.0}, two_pass=two_pass, generator=_seed(0))
    hook.remove()
    assert len(seen) == 1


def test_a_first_frame_is_kept_in_both_passes(task, two_pass, between):
    pipeline, picture = task(ImageToVideoPipeline), _picture()
    latents = pipeline(picture, **CALL, two_pass=two_pass, generator=_seed(0)).frames
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    for found, side in ((between[0][0], 16), (latents, 32)):
        resized = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear")
        with torch.no_grad():
            known = pipeline.vae.normalize(pipeline.vae.encode(resized[:, :, None]).latent_dist.mean)
        torch.testing.assert_close(found[:, :, :1], known, rtol=0, atol=1e-5)
    call = {**CALL, "output_type": "np", "keep_known_pixels": True, "height": 48, "width": 48}
    large = _picture(side=48)
    frames = pipeline(large, **call, two_pass=two_pass, generator=_seed(0)).frames
    np.testing.assert_allclose(frames[0, 0], large / 255, atol=1e-5)
    pictures = [_picture(1), _picture(2)]
    both = pipeline(pictures, **{**CALL, "prompt": ["a", "c"]}, two_pass=two_pass, generator=_seed(0, 1)).frames
    torch.testing.assert_close(both[:1], latents, rtol=0, atol=1e-4)


def test_given_frames_are_softened_once_and_at_their_own_size(task, two_pass, between):
    pipeline, picture = task(ImageToVideoPipeline), _picture()
    latents = pipeline(picture, **CALL, input_crf=29, two_pass=two_pass, generator=_seed(0)).frames
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    soft = soften(pixels, 29)
    assert not torch.allclose(soft, pixels, atol=0.05)
    for found, side in ((between[0][0], 16), (latents, 32)):
        resized = torch.nn.functional.interpolate(soft[:, :, 0], (side, side), mode="bilinear")
        with torch.no_grad():
            known = pipeline.vae.normalize(pipeline.vae.encode(resized[:, :, None]).latent_dist.mean)
        torch.testing.assert_close(found[:, :, :1], known, rtol=0, atol=1e-5)


@pytest.mark.parametrize("crf", [0, 29])
def test_hidden_pixels_never_matter(task, two_pass, crf):
    pipeline = task(MaskedPredictionPipeline)
    clip = np.stack([_picture(seed) for seed in range(9)])
    mask = np.zeros((32, 32), bool)
    mask[:, :24] = True
    results = []
    for filling in (0, 255):
        frames = clip.copy()
        frames[:, ~mask] = filling
        call = {**CALL, "output_type": "np", "two_pass": two_pass, "input_crf": crf}
        condition = VideoCondition(frames, mask=mask)
        results.append(pipeline(condition, **call, generator=_seed(0)).frames[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0][:, mask], clip[:, mask] / 255, atol=1e-5)


def test_interpolation_and_restyling(task, two_pass, calls):
    pipeline = task(InterpolationPipeline)
    first, last = _picture(1), _picture(2)
    frames = pipeline(
        first, last, **{**CALL, "output_type": "np"}, keep_known_pixels=True, two_pass=two_pass, generator=_seed(0)
    ).frames[0]
    np.testing.assert_allclose(frames[[0, -1]], np.stack([first, last]) / 255, atol=1e-5)
    calls.clear()
    clip, restyle = np.stack([_picture(seed) for seed in range(9)]), task(VideoToVideoPipeline)
    call = {**CALL, "num_inference_steps": 6, "two_pass": two_pass}
    restyle(clip, **call, denoise_strength=0.34, generator=_seed(0))
    assert [tokens for tokens, _ in _steps(calls)] == [12] * 2 + [48] * 3, "the strength is the first pass's"
    other = restyle(255 - clip, **call, denoise_strength=0.34, generator=_seed(0)).frames
    assert not torch.allclose(restyle(clip, **call, denoise_strength=0.34, generator=_seed(0)).frames, other, atol=1e-3)


def test_time_is_enlarged_too(task, pipe, calls):
    two_pass = TwoPass(_upsampler(temporal_upsample=True))
    latents = pipe(**CALL, two_pass=two_pass, generator=_seed(0)).frames
    assert latents.shape == (1, 4, 3, 4, 4)
    assert [tokens for tokens, _ in _steps(calls)] == [2 * 2 * 2] * 3 + [3 * 4 * 4]
    # The last latent starts at second 1 / 4 of 5 frames at 4 a second, and at 5 / 8 of 9 frames at 8 a second.
    starts = [float(call["video_coords"][0, 0].max()) for call in (calls[0], calls[-1])]
    assert starts == pytest.approx([1 / 4, 5 / 8])
    calls.clear()
    condition = VideoCondition(_picture(), 8)
    task(MaskedPredictionPipeline)(condition, **CALL, two_pass=two_pass, generator=_seed(0))
    assert _steps(calls)[0][0] == (2 + 1) * 2 * 2
    for frame_index, frames, message in (
        (5, 9, r"frame_index=5 falls between .* use 4 or 6"),
        (0, 13, "num_frames=13 cannot be enlarged in time by 2: .* use 9 or 17"),
    ):
        with pytest.raises(RequestError, match=message):
            task(MaskedPredictionPipeline)(
                VideoCondition(_picture(), frame_index), **CALL, num_frames=frames, two_pass=two_pass
            )


def test_distilled_presets(pipe, calls, upsampler_folder):
    upsampler = load_upsampler(upsampler_folder)
    two_pass = TwoPass(upsampler, "distilled")
    pipe(**{**CALL, "guidance_scale": 5.0}, two_pass=two_pass, generator=_seed(0))
    expected = [1000, 993.7, 987.5, 981.2, 975.0, 909.4, 725.0, 909.4, 725.0, 421.9]
    assert [timestep for _, timestep in _steps(calls)] == pytest.approx(expected, abs=0.11)
    assert {call["hidden_states"].shape[0] for call in calls} == {1}, "without guidance"
    call = {**CALL, "output_type": "pt", "two_pass": two_pass}
    mapped = {**call, "two_pass": TwoPass(upsampler, "distilled-13b")}
    plain, toned = (pipe(**each, generator=_seed(0)).frames for each in (call, mapped))
    assert not torch.allclose(plain, toned, atol=1e-3)
    latents, toned_latents = (
        pipe(**{**each, "output_type": "latent"}, generator=_seed(0)).frames for each in (call, mapped)
    )
    assert torch.equal(latents, toned_latents), "tones are mapped after the second pass"
    vae = pipe.vae
    with torch.no_grad():
        video = vae.decode(vae.denormalize(tone_map(latents, 0.6))).sample
    expected = (video / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    torch.testing.assert_close(toned, expected, rtol=0, atol=1e-5)


def test_skipped_steps_are_those_of_the_pass_own_schedule(pipe, upsampler_folder, calls):
    dev = presets()["dev"]
    off = {"guidance_scale": 1.0, "stg_scale": 0.0, "guidance_rescale": 0.0, "stg_blocks": None}
    two_pass = TwoPass(load_upsampler(upsampler_folder), dev, first_pass=off, second_pass=off)
    call = {name: value for name, value in CALL.items() if name != "guidance_scale"}
    pipe(**call, two_pass=two_pass, generator=_seed(0))
    found = _steps(calls)
    assert [tokens for tokens, _ in found] == [12] * 27 + [48] * 13
    for tokens, side, here in ((12, 16, slice(0, 27)), (48, 32, slice(17, 30))):
        calls.clear()
        pipe(**CALL, height=side, width=side, num_inference_steps=30, generator=_seed(0))
        whole = [timestep for _, timestep in _steps(calls)]
        assert [timestep for count, timestep in found if count == tokens] == pytest.approx(whole[here], abs=0.11)


def test_what_cannot_be_done_is_refused_before_anything_is_computed(pipe, two_pass, upsampler_folder, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("computed something")

    monkeypatch.setattr(pipe, "encode_prompt", fail)
    upsampler = load_upsampler(upsampler_folder)
    for call, message in (
        ({"two_pass": TwoPass(_upsampler(8))}, "latents of 8 channels and the model's VAE gives 4"),
        ({"two_pass": two_pass, "num_inference_steps": 1}, r"denoise_strength=0\.5 of 1 step leaves none"),
        ({"two_pass": TwoPass(upsampler, second_pass={"denoise_strength": 1.0})}, "from noise alone"),
        ({"two_pass": TwoPass(upsampler, second_pass={"skip_initial_steps": 3})}, "skip_initial_steps=3 and"),
        ({"two_pass": two_pass, "height": 8}, r"height=8 leaves the first pass 5, .*: use 16 or more"),
        ({"two_pass": two_pass, "guidance_scale": [1.0] * 3}, "guidance_scale holds 3 values for 1 step"),
        ({"two_pass": TwoPass(upsampler, "dev")}, r"stg_blocks=\[\d+.*are not there"),
        ({"two_pass": two_pass, "denoise_strength": 0.5}, "of the first pass needs a clip"),
        (
            {"two_pass": TwoPass(upsampler, second_pass={"tone_map_compression_ratio": 2})},
            r"tone_map_compression_ratio=2 is outside 0 to 1",
        ),
        ({"two_pass": upsampler}, "two_pass is a LatentUpsampler: give TwoPass"),
    ):
        with pytest.raises(RequestError, match=message):
            pipe(**{**CALL, **call})
    with pytest.raises(TypeError, match="did you mean 'num_inference_steps'"):
        pipe(**CALL, two_pass=TwoPass(upsampler, first_pass={"num_inference_step": 3}))
    with pytest.raises(RequestError, match=r"upscale_preset='distiled' is not known: .*did you mean 'distilled'"):
        TwoPass(upsampler, "distiled")


def test_from_the_command_to_a_file(tmp_path, ltx_folders, run_cli):
    _upsampler(8).save_pretrained(tmp_path / "upsampler")
    model = ltx_folders["0.9.5"]
    words = ["generate", "a red circle", "--model", model, "--seed", 3, "--steps", 3, "--height", 64, "--width", 96,
             "--num-frames", 9, "--frame-rate", 8, "--upscale", tmp_path / "upsampler"]  # fmt: skip
    done = run_cli(*words, "-o", tmp_path / "a.gif")
    assert done.code == 0, done.err
    assert "two passes (plain): 32 x 32, then 64 x 64, resized to 96 x 64." in done.out
    metadata = read_metadata(tmp_path / "a.gif")
    assert (metadata["upscale"], metadata["upscale_preset"]) == (str(tmp_path / "upsampler"), "plain")
    assert ResolvedRequest.from_metadata(metadata).upscale_preset == "plain"
    frames = read_video(tmp_path / "a.gif").frames
    assert frames.shape == (9, 64, 96, 3)
    assert run_cli(*words, "-o", tmp_path / "b.gif").code == 0
    assert np.array_equal(read_video(tmp_path / "b.gif").frames, frames)
    assert run_cli(*words[:-2], "-o", tmp_path / "c.gif").code == 0
    assert not np.array_equal(read_video(tmp_path / "c.gif").frames, frames)


def test_a_prompt_file_and_a_picture(tmp_path, tiny_pipeline_folder, upsampler_folder, run_cli):
    from PIL import Image

    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    words = ["--model", tiny_pipeline_folder, "--upscale", upsampler_folder, "--upscale-preset", "distilled"]
    done = run_cli("generate", "--prompts", tmp_path / "prompts.txt", "-o", f"{tmp_path}/clips/", *words, "--seed", 5)
    assert done.code == 0, done.err
    alone = tmp_path / "alone.mp4"
    assert run_cli("generate", "a blue square", "-o", alone, *words, "--seed", 6).code == 0
    made = [read_video(path).frames.astype(float) for path in (alone, *sorted((tmp_path / "clips").iterdir()))]
    # The arithmetic of a second clip in one process may round otherwise than that of a first.
    assert np.abs(made[2] - made[0]).mean() < 1 < np.abs(made[1] - made[0]).mean()
    Image.fromarray(_picture() // 80 * 80).save(tmp_path / "first.png")
    done = run_cli("animate", tmp_path / "first.png", "it moves", "-o", f"{tmp_path}/moving/", *words, "--seed", 1)
    assert done.code == 0, done.err
    assert np.array_equal(read_video(tmp_path / "moving").frames[0], _picture() // 80 * 80)


def test_a_long_clip_refuses_two_passes(tmp_path, tiny_pipeline_folder, upsampler_folder, run_cli):
    (tmp_path / "s.toml").write_text('[[segment]]\nprompt = "a"\nnum_frames = 20\n')
    words = ["--model", tiny_pipeline_folder, "--upscale", upsampler_folder]
    done = run_cli("story", tmp_path / "s.toml", "-o", tmp_path / "a.gif", *words)
    assert done.code == 2 and "not done window by window" in " ".join(done.err.split())
    assert {path.name for path in tmp_path.iterdir()} == {"s.toml"}


def test_the_example_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "upscaling.md").read_text(encoding="utf-8")
    code, found = text.split("```python\n")[1].split("```")[0], {}
    exec(compile(code, "docs/upscaling.md", "exec"), found)
    assert len(found["frames"]) == 17
    assert found["frames"][0].size == (64, 64)


def test_a_model_in_a_single_file(tmp_path, ltx_folders, run_cli):
    _upsampler(8).save_pretrained(tmp_path / "upsampler")
    _upsampler(4).save_pretrained(tmp_path / "other")
    model = tmp_path / "model.safetensors"
    assert run_cli("convert", ltx_folders["0.9.5"], model).code == 0
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / name).symlink_to(ltx_folders["0.9.5"] / name)
    words = ["generate", "a", "--model", model, "--steps", 2, "--height", 64, "--width", 64, "--num-frames", 9]
    done = run_cli(*words, "-o", tmp_path / "a.gif", "--upscale", tmp_path / "other")
    assert (done.code, "latents of 4 channels and the model's VAE gives 8" in done.err) == (2, True), done.err
    done = run_cli(*words, "-o", tmp_path / "a.gif", "--upscale", tmp_path / "upsampler")
    assert done.code == 0, done.err
    assert read_video(tmp_path / "a.gif").frames.shape == (9, 64, 64, 3)
