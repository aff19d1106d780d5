"""Frames as bytes are bit for bit what rounding the float frames on the host gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vgen.engine.speed.host_copy import HostFrames, to_bytes
from vgen.errors import RequestError
from vgen.pipelines import MaskedPredictionPipeline, VideoCondition

CALL = {
    "prompt": ["a", "b"],
    "height": 32,
    "width": 32,
    "num_frames": 17,
    "frame_rate": 8.0,
    "num_inference_steps": 2,
    "max_sequence_length": 8,
    "guidance_scale": 2.0,
}


def _rounded(frames):
    """What was done on the host before there was "uint8"."""
    return np.rint(np.clip(np.asarray(frames, dtype=np.float32), 0.0, 1.0) * 255.0).astype(np.uint8)


def test_every_float_near_a_rounding_edge():
    edges = (np.arange(256, dtype=np.float32) + 0.5) / 255 * 2 - 1
    near = np.concatenate([edges, np.nextafter(edges, np.float32(2)), np.nextafter(edges, np.float32(-2))])
    values = np.concatenate([near, np.random.default_rng(0).uniform(-1.3, 1.3, 3 * 5 * 640 - near.size)])
    video = torch.from_numpy(values.astype(np.float32)).reshape(1, 3, 5, 16, 40)
    before = video.clone()
    shares = (video * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).numpy()
    assert np.array_equal(to_bytes(video).numpy(), _rounded(shares))
    assert torch.equal(video, before)


def test_pieces_come_together_in_order():
    video = torch.rand(2, 3, 9, 4, 6) * 2 - 1
    frames = HostFrames(9)
    for piece in video.split([1, 3, 5], dim=2):
        frames.append(piece)
    assert np.array_equal(frames.finish(), to_bytes(video).numpy())
    short = HostFrames(9)
    short.append(video[:, :, :4])
    with pytest.raises(ValueError, match="4 of 9 frames"):
        short.finish()


@pytest.fixture
def pipeline(make_native_components):
    made = MaskedPredictionPipeline(**make_native_components())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("way", ["whole", "streamed", "sliced", "tiled"])
def test_a_call_gives_the_bytes_of_its_floats(pipeline, way):
    {
        "whole": lambda: None,
        "streamed": lambda: pipeline.vae.enable_streaming(4),
        "sliced": pipeline.vae.enable_slicing,
        "tiled": lambda: pipeline.vae.enable_tiling(24, 24),
    }[way]()
    noise = torch.Generator().manual_seed(3)
    mask = torch.zeros(9, 32, 32)
    mask[:, :12] = 1
    known = [
        VideoCondition(torch.rand(3, 32, 32, generator=noise), 0),
        VideoCondition(torch.rand(9, 3, 32, 32, generator=noise), 4, mask=mask),  # goes over the bounds of pieces
    ]
    pieces, append = [], HostFrames.append
    found = {}
    for kind in ("np", "uint8"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                HostFrames, "append", lambda self, video: (pieces.append(video.shape[2]), append(self, video))
            )
            found[kind] = pipeline(
                known, **CALL, output_type=kind, keep_known_pixels=True, generator=torch.Generator().manual_seed(1)
            ).frames
    assert found["uint8"].dtype == np.uint8
    assert found["uint8"].shape == (2, 17, 32, 32, 3)
    assert np.array_equal(found["uint8"], _rounded(found["np"]))
    assert (len(pieces) > 1) == (way == "streamed")


def test_an_unknown_kind_is_refused(pipeline):
    with pytest.raises(RequestError, match="output_type='bytes' is not known: use pil, np, pt, uint8 or latent"):
        pipeline(**CALL, output_type="bytes")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_from_a_gpu_arrive_whole():
    video = torch.rand(2, 3, 33, 128, 128) * 2 - 1
    frames = HostFrames(33)
    for piece in video.cuda().split(8, dim=2):
        frames.append(piece)
    assert np.array_equal(frames.finish(), to_bytes(video).numpy())
