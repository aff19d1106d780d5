"""A draft first: what it decides, what it leaves alone, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vgen.diffusion.guidance import ClassifierFreeGuidance
from vgen.errors import RequestError
from vgen.hub.find import model_strides
from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline, VideoToVideoPipeline
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.passes.draft import CLEARLY_WORSE, loss_on
from vgen.request.request import GenerateRequest

FRAMES, SIDE = 9, 32
Calls = list[dict[str, Any]]


@pytest.fixture
def calls(pipe: TextToVideoPipeline) -> Iterator[Calls]:
    seen: Calls = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
    yield seen
    hook.remove()


def latents(pipe: TextToVideoPipeline, *seeds: int, prompt: Any = "a red circle", **settings: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, output_type="latent", **settings).frames


def test_the_clip_begins_with_the_first_frame_of_its_draft(pipe: TextToVideoPipeline, calls: Calls) -> None:
    draft = latents(pipe, 0, num_inference_steps=2)
    calls.clear()
    made = latents(pipe, 0, num_inference_steps=4, draft_steps=2)
    assert torch.equal(made[:, :, :1], draft[:, :, :1])
    assert not torch.allclose(made[:, :, 1:], draft[:, :, 1:], atol=1e-2)
    assert len(calls) == 2 + 2 + 2 + 4 and pipe.num_timesteps == 8, "two drafts, a look at each, and the clip"
    first = made[0, 0, 0].numel()  # a token each
    for number, call in enumerate(calls):
        given = torch.broadcast_to(call["timestep"].reshape(len(call["timestep"]), -1), call["hidden_states"].shape[:2])
        assert bool((given[:, :first] == 0).all()) == (number >= 6), "given to the clip, and not to the drafts"
        assert bool((given[:, first:] > 0).all())


def test_the_second_draft_begins_the_clips_whose_first_is_clearly_worse(
    pipe: TextToVideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second draft is that of the negative noise, and the noise of the clip is the same either way."""
    seen: list[tuple[torch.Tensor, ...]] = []

    def losses(pipe: Any, made: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((made, rest[0].latents))
        return torch.tensor([1.51, 1.49]) if len(seen) == 1 else torch.ones(2)

    prompts, call = ["a red circle", "a blue square"], {"draft_steps": 2, "num_inference_steps": 2}
    monkeypatch.setattr("vgen.pipelines.passes.draft.loss_on", lambda pipe, made, *rest: torch.ones(2))
    plain = latents(pipe, 0, 1, prompt=prompts, **call)
    monkeypatch.setattr("vgen.pipelines.passes.draft.loss_on", losses)
    made = latents(pipe, 0, 1, prompt=prompts, **call)
    (first, _), (second, _) = seen
    assert torch.equal(made[0, :, :1], second[0, :, :1])
    assert torch.equal(made[1], plain[1])
    assert torch.equal(plain[:, :, :1], first[:, :, :1])
    noise = torch.stack([torch.randn(made.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    for start, draft in ((noise, first), (-noise, second)):
        alone = pipe(prompts, latents=start, output_type="latent", num_inference_steps=2, draft_steps=0).frames
        torch.testing.assert_close(alone, draft, rtol=0, atol=1e-6)


def test_the_models_own_loss_tells_a_second_object() -> None:
    """Clips of the training world against the same clips with a second object, as the embedded model sees them."""
    from vgen.training.data.sprites import SpriteWorld

    pipe = TextToVideoPipeline.from_pretrained("sprites")
    world, wrong, losses = SpriteWorld("test", 1), 0, []
    for place in range(6):
        clip = world.sample(place)
        pixels = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        background = pixels.flatten(2).median(2).values[..., None, None, None]
        mirrored = pixels.flip(-1, -2)
        two = torch.where((mirrored - background).abs().amax(1, keepdim=True) > 0.2, mirrored, pixels)
        settings = pipe.fill_settings({"prompt": clip.caption, "generator": torch.Generator().manual_seed(0)})
        shape, _ = pipe.check_inputs(settings)
        with torch.no_grad():
            text = pipe.encode_prompt(clip.caption, do_classifier_free_guidance=True, max_sequence_length=64)
            one, both = (
                float(loss_on(pipe, pipe.vae.normalize(pipe.vae.encode(seen).latent_dist.mode()), settings, shape, text,
                              ClassifierFreeGuidance(3.0)))
                for seen in (pixels, two)
            )  # fmt: skip
        losses.append((one, both))
        wrong += both < CLEARLY_WORSE * one
    assert wrong == 0, losses


def test_every_clip_of_a_batch_has_a_draft_of_its_own(pipe: TextToVideoPipeline) -> None:
    settings: dict[str, Any] = {"draft_steps": 2, "num_inference_steps": 2}
    both = latents(pipe, 0, 1, prompt=["a red circle", "a blue square"], **settings)
    for row, (seed, prompt) in enumerate(((0, "a red circle"), (1, "a blue square"))):
        torch.testing.assert_close(both[row], latents(pipe, seed, prompt=prompt, **settings)[0], rtol=0, atol=1e-5)
    twice = latents(pipe, 0, 1, num_videos_per_prompt=2, **settings)
    torch.testing.assert_close(twice[0], both[0], rtol=0, atol=1e-5)
    assert not torch.allclose(twice[0, :, 0], twice[1, :, 0], atol=1e-2)


def test_without_a_motion_to_make_or_with_something_given_there_is_none(
    pipe: TextToVideoPipeline, calls: Calls
) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    animate, restyle = (cls(**pipe.components) for cls in (ImageToVideoPipeline, VideoToVideoPipeline))
    for given_pipe in (animate, restyle):
        given_pipe.set_progress_bar_config(disable=True)

    def made(draft_steps: int) -> list[torch.Tensor]:
        call: dict[str, Any] = {"draft_steps": draft_steps, "output_type": "latent", "num_inference_steps": 2}
        return [
            latents(pipe, 0, num_frames=1, draft_steps=draft_steps, num_inference_steps=2),
            animate(clip[0], "a", generator=torch.Generator().manual_seed(0), **call).frames,
            restyle(clip, "a", denoise_strength=0.5, generator=torch.Generator().manual_seed(0), **call).frames,
        ]

    plain, count = made(0), len(calls)
    assert all(torch.equal(*pair) for pair in zip(plain, made(3), strict=True))
    assert len(calls) == 2 * count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft_steps": -1}, r"draft_steps=-1 is outside 0 to 1000; the nearest is 0"),
        ({"draft_steps": 2.5}, r"draft_steps=2\.5 is not a whole number"),
        (
            {"draft_steps": 2, "sigmas": [1.0, 0.5]},
            "draft_steps=2 needs a schedule for the draft, and sigmas or timesteps by",
        ),
        ({"draft_steps": 2, "timesteps": [1000, 500]}, "by hand are those of the clip: leave them out"),
        ({"draft_steps": 2, "guidance_scale": [2.0] * 3}, "guidance_scale holds 3 values for 2 steps"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    settings: dict[str, Any], message: str, pipe: TextToVideoPipeline, calls: Calls
) -> None:
    with pytest.raises(RequestError, match=message):
        latents(pipe, 0, **settings)
    assert not calls


def test_a_models_own_draft_gives_way_to_a_schedule_by_hand() -> None:
    model = {"height": 32, "width": 32, "num_frames": 9, "frame_rate": 8.0, "num_inference_steps": 3, "draft_steps": 2}
    model |= {"guidance_scale": 2.0, "guidance_rescale": 0.0, "max_sequence_length": 8, "decode_timestep": 0.0}
    model |= {"image_cond_noise_scale": 0.0, "input_crf": 0}
    assert GenerationSettings.fill({}, model).draft_steps == 2
    assert GenerationSettings.fill({"draft_steps": 0}, model).draft_steps == 0
    for by_hand in ({"sigmas": [1.0, 0.5]}, {"timesteps": [1000, 500]}):
        assert GenerationSettings.fill(by_hand, model).draft_steps == 0


def test_a_request_stores_what_was_done(tiny_pipeline_folder: Path) -> None:
    defaults: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "frame_rate": 8.0, "guidance_scale": 2.0}
    strides = model_strides(tiny_pipeline_folder)

    def stored(model: dict[str, Any], **fields: Any) -> Any:
        request = GenerateRequest.create(prompt="a", seed=0, **fields)
        return (
            request.resolve({**defaults, "num_inference_steps": 3, **model}, strides).to_metadata().get("draft_steps")
        )

    assert stored({}) is None and stored({}, draft_steps="4") == 4
    assert stored({"draft_steps": 5}) == 5 and stored({"draft_steps": 5}, draft_steps=0) == 0
    assert stored({"draft_steps": 5}, sigmas="1,0.5") is None
    with pytest.raises(RequestError, match="draft_steps=3 belongs to task 'generate', not 'animate'"):
        GenerateRequest.create(task="animate", prompt="a", image="a.png", draft_steps=3)
