"""Lossy ways are opt-in and labelled; what was asked for wrongly is refused with what would do."""

import pytest

from vgen.engine.lossy.magnitudes import Magnitudes, read_magnitudes, write_magnitudes
from vgen.errors import CheckpointError, RequestError
from vgen.request.lossy import LOSSY_FIELDS, read_interval, read_step_cache
from vgen.request.request import GenerateRequest, ResolvedRequest
from vgen.types import Strides

DEFAULTS = {"height": 64, "width": 64, "num_frames": 17, "frame_rate": 8.0, "guidance_scale": 4.0}
DEFAULTS["num_inference_steps"] = 3


def _resolved(**fields):
    return GenerateRequest.create(prompt="a ball", **fields).resolve(DEFAULTS, Strides(4, 8, 8))


def test_nothing_lossy_is_on_by_default():
    request = _resolved()
    assert [getattr(request, field) for field in LOSSY_FIELDS] == [None] * 4 and request.lossy == ()
    assert "lossy" not in request.to_metadata() and not set(LOSSY_FIELDS) & set(request.to_metadata())


def test_what_is_lossy_is_said_in_the_metadata_and_comes_back_from_it():
    request = _resolved(
        quantize="int8", quantize_text="int8-weights", step_cache="taylorseer", guidance_interval="0.5,1"
    )
    metadata = request.to_metadata()
    said = ["quantize=int8", "quantize_text=int8-weights", "step_cache=taylorseer:2", "guidance_interval=0.5,1"]
    assert metadata["lossy"] == said
    assert ResolvedRequest.from_metadata(metadata) == request


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantize": "int4"}, "int8, int8-weights or fp8"),
        ({"quantize_text": "int8"}, "use int8-weights"),
        ({"step_cache": "first-blok"}, "did you mean 'first-block'"),
        ({"step_cache": "first-block:-1"}, "threshold must be a number from 0"),
        ({"step_cache": "first-block:nan"}, "threshold must be"),
        ({"step_cache": "taylorseer:1.5"}, "interval must be a whole number"),
        ({"guidance_interval": "1,0.5"}, "ascend"),
        ({"guidance_interval": "0.5"}, "LOW,HIGH"),
    ],
)
def test_nonsense_is_refused(fields, said):
    with pytest.raises(RequestError, match=said):
        GenerateRequest.create(prompt="a ball", **fields)


def test_a_cache_is_spelled_as_it_is_read():
    assert str(read_step_cache("magcache")) == "magcache:0.06" == str(read_step_cache("magcache:0.06"))
    assert read_interval((0.25, 1)) == (0.25, 1.0)


def test_magnitudes_of_half_the_steps_are_the_products_of_two():
    measured = Magnitudes((1.0, 0.8, 0.6, 0.4), (1.0, 0.9, 0.8, 0.5))
    assert measured.at(measured.sigmas) == pytest.approx(measured.ratios)
    assert measured.at((1.0, 0.6)) == pytest.approx([1.0, 0.72])
    assert measured.at((0.6, 0.5, 0.4, 0.1)) == pytest.approx([1.0, 0.5**0.5, 0.5**0.5, 1.0])


def test_magnitudes_come_back_from_their_file(tmp_path):
    measured, file = Magnitudes((1.0, 0.5), (1.0, 0.9)), tmp_path / "new" / "m.json"
    write_magnitudes(measured, file)
    assert read_magnitudes(file) == measured
    file.write_text('{"sigmas": [1.0, 2.0], "ratios": [1.0, 1.0]}')
    with pytest.raises(CheckpointError, match="measure them again"):
        read_magnitudes(file)
