"""Given pixels become as soft as compressed video, and nothing else changes."""

from __future__ import annotations

import PIL.Image
import pytest
import torch

from vgen.errors import RequestError
from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline
from vgen.pipelines.call.conventions import ORIGINAL
from vgen.pipelines.coding.soften import soften

CALL = {"prompt": "a", "num_frames": 5, "num_inference_steps": 1, "output_type": "latent"}


def _pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _smooth(height: int, width: int) -> torch.Tensor:
    ramp = torch.linspace(-0.8, 0.8, width).expand(1, 3, 1, height, width)
    return ramp.contiguous()


def test_nothing_is_done_at_0() -> None:
    pixels = _pixels(1, 3, 2, 32, 48)
    assert soften(pixels, 0) is pixels


def test_noise_is_softened_and_slopes_are_kept() -> None:
    noise, slope = _pixels(2, 3, 2, 32, 48), _smooth(32, 48)
    assert soften(noise, 29).shape == noise.shape
    assert soften(noise, 29).std() < 0.6 * noise.std()
    torch.testing.assert_close(soften(slope, 10), slope, rtol=0, atol=0.06)


def test_a_higher_factor_loses_more() -> None:
    picture = _smooth(64, 64) + 0.2 * _pixels(1, 3, 1, 64, 64).clamp(-1, 1)
    blurred = soften(picture, 1)
    losses = [(soften(picture, crf) - blurred).abs().mean() for crf in (15, 30, 45)]
    assert losses == sorted(losses)
    assert losses[0] > 0


def test_each_frame_and_each_prompt_is_coded_alone() -> None:
    pixels = _pixels(2, 3, 3, 32, 32)
    together = soften(pixels, 29)
    for prompt in range(2):
        for frame in range(3):
            alone = soften(pixels[prompt : prompt + 1, :, frame : frame + 1], 29)
            assert torch.equal(together[prompt : prompt + 1, :, frame : frame + 1], alone)


@pytest.fixture(scope="module")
def pipeline() -> ImageToVideoPipeline:
    loaded = ImageToVideoPipeline.from_pretrained("sprites", torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    loaded.register_to_config(trained=None)  # else what is given is also encoded to see whether it is of its kind
    return loaded


def test_a_pipeline_encodes_what_was_softened(pipeline: ImageToVideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    image = PIL.Image.effect_noise((64, 64), 80).convert("RGB")
    seen = []
    encode = pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda video: (seen.append(video), encode(video))[1])
    for crf in (None, 29):
        pipeline(image=image, input_crf=crf, **CALL)
    sharp, soft = seen
    torch.testing.assert_close(soft, soften(sharp, 29))
    assert not torch.allclose(soft, sharp, atol=0.05)


def test_the_factor_has_limits_and_a_home(pipeline: ImageToVideoPipeline) -> None:
    assert ORIGINAL.defaults["input_crf"] == 29
    other = TextToVideoPipeline(**pipeline.components)
    for wrong in (-1, 52, 1.5, True):
        with pytest.raises(RequestError, match=r"input_crf=.*(outside 0 to 51|not a whole number)"):
            other(**CALL, input_crf=wrong)
