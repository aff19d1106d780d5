"""Which steps a call takes: by the caller, by a distilled model, and what is refused."""

import numpy as np
import pytest

from vgen.errors import RequestError
from vgen.request.request import GenerateRequest
from vgen.request.resolve import check_guidance
from vgen.request.steps import Steps, read_sigmas, settle_steps, skipped_steps
from vgen.types import Strides

DISTILLED = [1.0, 0.9937, 0.975, 0.725]


@pytest.mark.parametrize(
    "values", [[1.0, 0.9, 0.5], (1, 0.9, 0.5, 0), "1,0.9,0.5", "1 0.9, 0.5", np.array([1, 0.9, 0.5])]
)
def test_schedules_by_hand(values):
    assert read_sigmas(values) == (1.0, 0.9, 0.5)


def test_timesteps_are_thousandths():
    assert read_sigmas([1000, 900, 500], "timesteps", 1000) == (1.0, 0.9, 0.5)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.0],
        [0.5, 0.9],
        [0.5, 0.5],
        [1.1, 0.5],
        [1.0, -0.1],
        "x",
        "",
        None,
        3,
        [None],
        [True],
        [float("nan")],
        [1.0, float("inf")],
        [10**400],
        {"a": 1},
    ],
)
def test_bad_schedules(values):
    with pytest.raises(RequestError, match=r"sigmas=.*descend from at most 1 and stay above 0"):
        read_sigmas(values)


def _settle(defaults=(), **given):
    return settle_steps(given, dict(defaults))


def test_the_caller_then_the_model():
    assert _settle({"num_inference_steps": 30}) == Steps(30, None)
    assert _settle({"num_inference_steps": 30}, num_inference_steps=4) == Steps(4, None)
    assert _settle({"num_inference_steps": 30}, sigmas=[1, 0.5]) == Steps(2, (1.0, 0.5))
    assert _settle({}, timesteps=[1000, 500]) == Steps(2, (1.0, 0.5))
    assert _settle({}, sigmas=[1, 0.5], num_inference_steps=2) == Steps(2, (1.0, 0.5))
    assert _settle({}) == Steps(None, None)


def test_contradictions():
    with pytest.raises(RequestError, match="num_inference_steps=3 and a list of 2 sigmas contradict"):
        _settle({}, sigmas=[1, 0.5], num_inference_steps=3)
    with pytest.raises(RequestError, match="sigmas and timesteps are both given"):
        _settle({}, sigmas=[1, 0.5], timesteps=[1000, 500])


def test_a_distilled_schedule_is_used_and_held():
    model = {"sigmas": DISTILLED, "num_inference_steps": 50}
    assert _settle(model) == Steps(4, tuple(DISTILLED))
    assert _settle(model, num_inference_steps=4) == Steps(4, tuple(DISTILLED))
    with pytest.raises(
        RequestError, match="num_inference_steps=30: this model was distilled for 4 steps, at sigmas 1, "
    ):
        _settle(model, num_inference_steps=30)
    assert _settle(model, sigmas=[1, 0.5]) == Steps(2, (1.0, 0.5)), "a schedule by hand is the caller's business"


def test_allowed_numbers_of_steps():
    model = {"allowed_inference_steps": [8, 4], "num_inference_steps": 50}
    assert _settle(model) == Steps(8, None)
    assert _settle({**model, "num_inference_steps": 4}) == Steps(4, None)
    assert _settle(model, num_inference_steps=4) == Steps(4, None)
    with pytest.raises(RequestError, match=r"num_inference_steps=7 is not what .* \(4, 8\): use 8"):
        _settle(model, num_inference_steps=7)
    with pytest.raises(RequestError, match="num_inference_steps=2"):
        _settle(model, sigmas=[1, 0.5])
    both = {"allowed_inference_steps": [4, 2], "sigmas": DISTILLED}
    assert _settle(both) == Steps(4, tuple(DISTILLED))
    assert _settle(both, num_inference_steps=2) == Steps(2, None)


def test_allowed_sigmas():
    model = {"allowed_inference_steps": [*DISTILLED, 0.4219]}
    assert _settle(model) == Steps(5, (*DISTILLED, 0.4219))
    assert _settle({**model, "sigmas": DISTILLED}) == Steps(4, tuple(DISTILLED))
    assert _settle(model, sigmas=[0.99369999, 0.4219]) == Steps(2, (0.99369999, 0.4219))
    with pytest.raises(RequestError, match=r"sigmas holds 0\.7, .*the nearest is 0\.725"):
        _settle(model, sigmas=[1, 0.7])
    with pytest.raises(RequestError, match="distilled for 5 steps"):
        _settle(model, num_inference_steps=3)
    with pytest.raises(RequestError, match="allowed_inference_steps='no'"):
        _settle({"allowed_inference_steps": "no"})


@pytest.mark.parametrize(
    ("steps", "strength", "skipped"),
    [(10, 1.0, 0), (10, 0.5, 5), (100, 0.29, 71), (10, 0.3, 7), (3, 0.99, 1), (1, 1, 0)],
)
def test_skipped_steps(steps, strength, skipped):
    assert skipped_steps(steps, strength) == skipped


def test_a_strength_that_leaves_nothing():
    with pytest.raises(
        RequestError, match=r"denoise_strength=0\.1 of 8 steps leaves none .* 0\.125 or more, or num_inference_steps=10"
    ):
        skipped_steps(8, 0.1)
    assert skipped_steps(8, 0.125) == 7
    assert skipped_steps(10, 0.1) == 9


FEW = {"distilled": True, "sigmas": [1.0, 0.97, 0.8], "guidance_scale": 1.0, "num_inference_steps": 3}


def test_a_distilled_model_keeps_to_its_whole_schedule():
    own = Steps(3, (1.0, 0.97, 0.8))
    for given in ({}, {"num_inference_steps": 3}, {"sigmas": [1, 0.97, 0.8]}, {"timesteps": [1000, 970, 800, 0]}):
        assert settle_steps(given, FEW) == own
    for given, message in (
        ({"num_inference_steps": 4}, "num_inference_steps=4: .*exactly 3 steps, at sigmas 1, 0.97, 0.8; use .*=3"),
        ({"sigmas": [1, 0.97]}, "sigmas=1, 0.97: .*leave sigmas out"),
        ({"sigmas": [1, 0.9, 0.8]}, "sigmas=1, 0.9, 0.8: "),
        ({"sigmas": [1, 0.97, 0.8], "num_inference_steps": 4}, "contradict"),
    ):
        with pytest.raises(RequestError, match=message):
            settle_steps(given, FEW)
    with pytest.raises(RequestError, match="have no sigmas"):
        settle_steps({}, {"distilled": True})


def test_a_distilled_model_keeps_to_its_guidance():
    for given in ({}, {"guidance_scale": 1.0}, {"guidance_scale": [1, 1, 1]}, {"stg_scale": 0.0, "cfg_star": False}):
        check_guidance(given, FEW)
    for given in ({"guidance_scale": 4}, {"guidance_scale": 0.5}, {"guidance_scale": [1, 2, 1]}):
        with pytest.raises(RequestError, match=r"guidance_scale=.*use guidance_scale=1"):
            check_guidance(given, FEW)
    for name in ("stg_scale", "cfg_star", "guidance", "stochastic_sampling"):
        with pytest.raises(RequestError, match=f"{name}=True: .*leave it out"):
            check_guidance({name: True}, FEW)
        check_guidance({name: True}, {"sigmas": [1.0, 0.5]})


def test_a_request_to_a_distilled_model_is_settled_or_refused():
    defaults = {**FEW, "num_frames": 9, "height": 32, "width": 32, "frame_rate": 8.0}
    settled = GenerateRequest.create(prompt="a").resolve(defaults, Strides(4, 8, 8))
    assert settled.num_inference_steps == 3 and settled.guidance_scale == 1.0
    for fields, message in (({"num_inference_steps": 30}, "exactly 3 steps"), ({"guidance_scale": 4.0}, "distilled")):
        with pytest.raises(RequestError, match=message):
            GenerateRequest.create(prompt="a", **fields).resolve(defaults, Strides(4, 8, 8))
