"""Python as its users write it: diffusers' own loading, pipelines that share models."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

import vgen
from vgen.errors import RequestError
from vgen.io.media.images import fit_image
from vgen.io.media.video import read_metadata, read_video
from vgen.models import LatentUpsampler
from vgen.models.diffusers_compat import _give_names
from vgen.pipelines import (
    ImageToVideoPipeline,
    InterpolationPipeline,
    LatentUpsamplePipeline,
    MaskedPredictionPipeline,
    TextToVideoPipeline,
    TwoPass,
    VideoCondition,
    VideoToVideoPipeline,
)
from vgen.types import VideoShape

_FRESH = """
import importlib.util, sys, vgen
assert importlib.util.find_spec("diffusers").loader is not None
assert "diffusers" not in sys.modules and "torch" not in sys.modules
import diffusers
assert "vgen.pipelines" not in sys.modules
folder = sys.argv[1]
pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
print(type(pipe).__name__, type(diffusers.AutoModel.from_pretrained(folder, subfolder="transformer")).__name__)
print(hasattr(diffusers, "NoSuchPipeline"), type(vgen.ImageToVideoPipeline.from_pipe(pipe)).__name__)
"""


def test_a_fresh_process_finds_the_classes_after_import_vgen(tiny_pipeline_folder) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _FRESH, str(tiny_pipeline_folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["TextToVideoPipeline", "VideoDiT", "False", "ImageToVideoPipeline"]


def test_diffusers_imported_first_is_given_the_names_too() -> None:
    """Whether it looks names up by itself (PEP 562), by its class, or not at all."""
    for name in ("VideoDiT", "CausalVideoVAE", "LatentUpsampler", "TextToVideoPipeline", "VideoToVideoPipeline"):
        assert getattr(diffusers, name) is getattr(vgen, name)
    assert diffusers.DiffusionPipeline is vgen.DiffusionPipeline
    module = ModuleType("diffusers")
    module.__getattr__ = {"Other": 1}.__getitem__
    _give_names(module, ["VideoDiT"])
    assert (module.VideoDiT, module.Other) == (vgen.VideoDiT, 1)
    bare = ModuleType("diffusers")
    _give_names(bare, ["VideoDiT"])
    assert bare.VideoDiT is vgen.VideoDiT and not hasattr(bare, "Other")


def test_from_pipe_shares_the_models_as_they_are_and_prints_nothing(tiny_pipeline_folder, caplog, capfd) -> None:
    pipe = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder, torch_dtype=torch.bfloat16)
    with caplog.at_level(logging.INFO):
        other = ImageToVideoPipeline.from_pipe(pipe).to("cpu")
        assert other.transformer is pipe.transformer and pipe.transformer.dtype == pipe.vae.dtype == torch.bfloat16
        assert other.name_of_model == pipe.name_of_model == tiny_pipeline_folder.name
        wide = ImageToVideoPipeline.from_pipe(pipe, torch_dtype=torch.float32, defaults={"height": 64})
        assert wide.transformer.dtype == torch.float32 and wide.config.defaults == {"height": 64}
        pipe.to("cpu", torch.bfloat16)
    assert caplog.text == "" and capfd.readouterr() == ("", "")


def test_from_pipe_of_diffusers_own_keeps_its_convention(ltx_folders) -> None:
    ours = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"])
    theirs = diffusers.LTXPipeline.from_pretrained(
        ltx_folders["0.9.5"], transformer=ours.transformer, vae=ours.vae
    )  # fmt: skip
    again = TextToVideoPipeline.from_pipe(theirs)
    assert again.transformer is ours.transformer and again.convention == ours.convention
    with pytest.raises(RequestError, match=r"has no scheduler, text_encoder, tokenizer, transformer"):
        TextToVideoPipeline.from_pipe(LatentUpsamplePipeline(vae=ours.vae, latent_upsampler=None))


def _pixels(shape: VideoShape) -> dict[str, Any]:
    """One clip as every `output_type` gives it out, its values whole 255ths."""
    clip = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    tensor = torch.from_numpy(clip).movedim(-1, 2) / 255
    pictures = [[PIL.Image.fromarray(frame) for frame in clip[0]]]
    return {"uint8": clip, "np": tensor.movedim(2, -1).numpy(), "pt": tensor, "pil": pictures}


def _calls(pipe: TextToVideoPipeline, clip: Any, **settings: Any) -> dict[str, Any]:
    """The latents that every pipeline makes of a clip, of its first and its last frame."""
    call = {"prompt": "a", "output_type": "latent", "generator": torch.Generator(), **settings}
    calls = {
        ImageToVideoPipeline: {"image": clip[0]},
        InterpolationPipeline: {"first": clip[0], "last": clip[-1]},
        MaskedPredictionPipeline: {"conditions": [VideoCondition(clip[:5])]},
        VideoToVideoPipeline: {"video": clip},
    }
    found = {}
    for cls, own in calls.items():
        call["generator"].manual_seed(0)
        other = cls.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        found[cls.__name__] = other(**{**call, **own}).frames
    return found


def test_what_a_pipeline_gives_out_goes_back_into_every_pipeline(pipe) -> None:
    """Every output_type: the kinds that are asked for, and the same latents from the same clip of every kind."""
    for kind in ("pil", "np", "pt", "uint8"):
        output = pipe("a", output_type=kind)
        assert set(_calls(pipe, output.frames[0])) == {
            "ImageToVideoPipeline", "InterpolationPipeline", "MaskedPredictionPipeline", "VideoToVideoPipeline"
        }  # fmt: skip
        with pytest.raises(RequestError, match=r"is what a pipeline returned: give one of its clips"):
            ImageToVideoPipeline.from_pipe(pipe)(output, "a")
    of_kind = {kind: _calls(pipe, clips[0]) for kind, clips in _pixels(VideoShape(9, 32, 32)).items()}
    for kind, latents in of_kind.items():
        for name, tensor in latents.items():
            torch.testing.assert_close(tensor, of_kind["uint8"][name], rtol=0, atol=1e-5, msg=f"{kind} into {name}")


def test_an_upsampled_clip_goes_back_in(pipe) -> None:
    torch.manual_seed(0)
    upsampler = LatentUpsampler(in_channels=4, mid_channels=32, num_blocks_per_stage=1, dims=3).eval()
    enlarge = LatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler)
    seeded = {"output_type": "latent"}
    found = [
        enlarge(clips[0], generator=torch.Generator().manual_seed(0), **seeded).frames
        for clips in _pixels(VideoShape(9, 32, 32)).values()
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-5)
    whole = enlarge(latents=found[0], output_type="uint8").frames
    assert whole.dtype == np.uint8 and whole.shape == (1, 9, 128, 128, 3)


@pytest.mark.parametrize("two_pass", [False, True])
def test_pixels_of_another_size_are_fitted_in_every_pipeline(pipe, two_pass) -> None:
    """As if they had been fitted before by the function that the commands use; without fit refused."""
    torch.manual_seed(0)
    upsampler = LatentUpsampler(in_channels=4, mid_channels=32, num_blocks_per_stage=1, dims=3).eval()
    more = {"two_pass": TwoPass(upsampler, second_pass={"denoise_strength": 0.5})} if two_pass else {}
    clip = np.random.default_rng(0).integers(0, 256, (9, 48, 80, 3), dtype=np.uint8)
    size = {"height": 32, "width": 32, **more}
    for fit in ("cover", "contain", "stretch"):
        before = np.stack([np.asarray(fit_image(PIL.Image.fromarray(frame), 32, 32, fit)) for frame in clip])
        expected = _calls(pipe, before, **size)
        for name, latents in _calls(pipe, clip, fit=fit, **size).items():
            torch.testing.assert_close(latents, expected[name], rtol=0, atol=1e-5, msg=f"{fit} in {name}")
    for cls, own in (
        (ImageToVideoPipeline, {"image": clip[0]}),
        (InterpolationPipeline, {"first": clip[0], "last": clip[-1]}),
        (MaskedPredictionPipeline, {"conditions": [VideoCondition(clip)]}),
        (VideoToVideoPipeline, {"video": clip}),
    ):
        other = cls.from_pipe(pipe)
        with pytest.raises(RequestError, match=r"is 48x80 and the clip 32x32 .*pass fit='cover'"):
            other(prompt="a", **own, **size)
        with pytest.raises(RequestError, match="fit='crop' must be one of 'cover', 'contain', 'stretch'"):
            other(prompt="a", fit="crop", **own, **size)


def test_a_condition_that_says_how_it_is_fitted_keeps_it(pipe) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (9, 48, 80, 3), dtype=np.uint8)
    predict = MaskedPredictionPipeline.from_pipe(pipe)
    predict.set_progress_bar_config(disable=True)
    call = {"prompt": "a", "output_type": "pt", "keep_known_pixels": True}
    frames = predict([VideoCondition(clip, fit="stretch")], fit="cover", **call).frames[0]
    fitted = np.asarray(fit_image(PIL.Image.fromarray(clip[3]), 32, 32, "stretch"))
    torch.testing.assert_close(frames[3], torch.from_numpy(fitted.copy()).movedim(-1, 0) / 255, rtol=0, atol=1e-6)


def test_errors_call_what_was_given_by_its_name(pipe) -> None:
    small = np.zeros((9, 40, 44, 3), np.uint8)
    call = {"prompt": ["a", "b"]}
    for cls, own, message in (
        (ImageToVideoPipeline, {"image": small[0]}, "image is 40x44 and the clip 32x32"),
        (ImageToVideoPipeline, {"image": small[:2]}, r"image\[0\] is 40x44"),
        (ImageToVideoPipeline, {"image": "first.png"}, "image is a str"),
        (ImageToVideoPipeline, {"image": small[None]}, r"image \(1, 9, 40, 44, 3\) is a batch .* image\[0\]"),
        (InterpolationPipeline, {"first": np.ones((32, 32, 3)), "last": small[0] + 7.0}, "last holds values from 7"),
        (VideoToVideoPipeline, {"video": small}, r"width=44 does not fit .*; use .* Or pass fit='cover'"),
        (VideoToVideoPipeline, {"video": [small, "b.mp4"]}, r"video\[1\] is a str"),
        (VideoToVideoPipeline, {"video": small, "height": 32, "width": 32}, "video is 40x44 and the clip 32x32"),
        (MaskedPredictionPipeline, {"conditions": small}, r"conditions is a ndarray: give VideoCondition\(frames\)"),
        (MaskedPredictionPipeline, {"conditions": [VideoCondition(small)]}, r"conditions\[0\]\.frames is 40x44"),
    ):
        with pytest.raises(RequestError, match=f"^{message}"):
            cls.from_pipe(pipe)(**call, **own)


def test_a_batch_for_as_many_prompts_is_one_clip_each(pipe) -> None:
    again = VideoToVideoPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    clips = np.random.default_rng(0).integers(0, 256, (2, 9, 32, 32, 3), dtype=np.uint8)
    call = {"output_type": "latent"}
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    both = again(clips, ["a", "b"], generator=seeds, **call).frames
    listed = [list(clip / 255) for clip in clips]
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    torch.testing.assert_close(both, again(listed, ["a", "b"], generator=seeds, **call).frames, rtol=0, atol=1e-5)
    with pytest.raises(RequestError, match=r"2 clips for 3 prompts: give one, as .*, or one per prompt"):
        again(clips, ["a", "b", "c"])


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif", ""])
def test_a_clip_of_every_kind_is_saved_alone_or_as_a_batch_of_one(tmp_path, ending) -> None:
    """The same file from every output_type, by every ending, and read back; a folder of png to the bit."""
    read = []
    for kind, clips in _pixels(VideoShape(5, 32, 32)).items():
        for name, frames in ((f"{kind}-batch", clips), (kind, clips[0])):
            path = vgen.save_video(frames, tmp_path / f"{name}{ending}", fps=8)
            clip = read_video(path)
            assert (len(clip.frames), clip.frame_rate) == (5, pytest.approx(8, rel=0.05))
            read.append(clip.frames)
    assert all(np.array_equal(frames, read[0]) for frames in read)
    if not ending:
        assert np.array_equal(read[0], _pixels(VideoShape(5, 32, 32))["uint8"][0])


def test_what_cannot_be_saved_is_refused_by_name(tmp_path) -> None:
    clips = np.zeros((2, 5, 32, 32, 3))
    for frames, message in (
        (clips, r"2 clips: give one of them, as frames\[0\]"),
        ([list(clips[0]), list(clips[1])], r"2 clips: give one of them, as frames\[0\]"),
        (torch.zeros(1, 4, 5, 4, 4), "frames is a Tensor"),
        (torch.randn(1, 4, 3, 4, 4), r"they must be in \[0, 1\]"),
        (clips[0] + 7, "values from 7 to 7"),
        ([], "frames is an empty list"),
    ):
        with pytest.raises(RequestError, match=message):
            vgen.save_video(frames, tmp_path / "a.mp4", fps=8)
    for more, message in (({"fps": "8"}, "fps='8' must be a number"), ({"fps": 0}, "frame_rate=0")):
        with pytest.raises(RequestError, match=message):
            vgen.save_video(clips[0], tmp_path / "a.mp4", **more)
    with pytest.raises(RequestError, match=r"'\.avi', which is not written"):
        vgen.save_video(clips[0], tmp_path / "a.avi", fps=8)
    assert list(tmp_path.iterdir()) == []
    vgen.save_video(clips[0], tmp_path / "a.gif", fps=8, metadata={"prompt": "nothing"})
    with pytest.raises(RequestError, match=r"exists already; use another name, or .*overwrite=True"):
        vgen.save_video(clips[0], tmp_path / "a.gif", fps=8)
    vgen.save_video(clips[0] + 1, tmp_path / "a.gif", fps=8, overwrite=True, metadata={"prompt": "white"})
    assert read_video(tmp_path / "a.gif").frames.min() == 255 and read_metadata(tmp_path / "a.gif") == {
        "prompt": "white"
    }
