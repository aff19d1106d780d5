"""A budget for decoding: kept by pipelines, taken by the request, refused where it is no amount."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vgen.errors import OutOfMemoryError, RequestError
from vgen.pipelines import MaskedPredictionPipeline, TextToVideoPipeline, VideoCondition
from vgen.request.request import GenerateRequest

CALL = {"prompt": "a red circle", "num_inference_steps": 1, "output_type": "np", "num_frames": 33}


@pytest.fixture(scope="module")
def pipeline() -> TextToVideoPipeline:
    pipeline = TextToVideoPipeline.from_pretrained("sprites")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _frames(pipeline: TextToVideoPipeline, **settings: object) -> np.ndarray:
    return pipeline(**CALL, generator=torch.Generator().manual_seed(0), **settings).frames


def test_a_smaller_budget_changes_no_pixel_worth_seeing(pipeline, monkeypatch) -> None:
    whole = _frames(pipeline)
    seen = []
    vae, decode = pipeline.vae, pipeline.vae.decode_in_pieces
    monkeypatch.setattr(
        vae, "decode_in_pieces", lambda *a, **k: (seen.append(vae.use_framewise_decoding), decode(*a, **k))[1]
    )
    np.testing.assert_allclose(_frames(pipeline, vae_memory="10MB"), whole, atol=1e-5)
    np.testing.assert_array_equal(_frames(pipeline, vae_memory="auto"), whole)
    assert seen == [True, False]


def test_what_cannot_work_is_refused_at_once(pipeline) -> None:
    with pytest.raises(RequestError, match="not an amount of memory"):
        _frames(pipeline, vae_memory="plenty")
    with pytest.raises(OutOfMemoryError, match="too little to decode"):
        _frames(pipeline, vae_memory=1000)


def test_what_is_given_is_encoded_within_it_too(monkeypatch) -> None:
    pipeline = MaskedPredictionPipeline.from_pretrained("sprites", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.register_to_config(trained=None)  # else what is given is also encoded to see whether it is of its kind
    clip = torch.rand(33, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = []
    encode = pipeline.vae.encode
    monkeypatch.setattr(
        pipeline.vae, "encode", lambda *a, **k: (seen.append(pipeline.vae.use_framewise_encoding), encode(*a, **k))[1]
    )
    made = [
        pipeline(
            **CALL,
            conditions=[VideoCondition(clip)],
            generator=torch.Generator().manual_seed(0),
            vae_memory=memory,
        ).frames
        for memory in (None, "10MB")
    ]
    assert seen == [False, True]
    np.testing.assert_allclose(*made, atol=1e-4)


def test_the_request_takes_it_in_the_usual_spellings() -> None:
    assert GenerateRequest.create(prompt="a", vae_memory="4GB").vae_memory == 4_000_000_000
    with pytest.raises(RequestError, match="vae_memory='lots' is not an amount of memory: give for instance 4GB"):
        GenerateRequest.create(prompt="a", vae_memory="lots")
