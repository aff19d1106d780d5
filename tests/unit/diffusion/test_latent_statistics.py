"""Matched statistics and mapped tones against closed forms."""

import math

import pytest
import torch

from vgen.diffusion.latent_statistics import match_statistics, tone_map
from vgen.errors import RequestError, ShapeError


def _latents(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_statistics_become_those_of_the_reference():
    latents, reference = _latents(2, 3, 3, 4, 4) * 3 + 2, _latents(2, 3, 2, 2, 2, seed=1) * 0.5 - 1
    matched = match_statistics(latents, reference)
    dim = (2, 3, 4)
    torch.testing.assert_close(matched.mean(dim), reference.mean(dim), rtol=0, atol=1e-5)
    torch.testing.assert_close(matched.std(dim), reference.std(dim), rtol=0, atol=1e-5)
    half = match_statistics(latents, reference, 0.5)
    torch.testing.assert_close(half, (latents + matched) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(match_statistics(latents, reference, 0.0), latents)
    torch.testing.assert_close(match_statistics(matched, reference), matched, rtol=0, atol=1e-5)


def test_normalising_before_or_after_is_the_same():
    latents, reference = _latents(1, 3, 3, 4, 4), _latents(1, 3, 2, 2, 2, seed=1)
    scale, shift = torch.tensor([0.5, 2.0, 3.0]).view(1, 3, 1, 1, 1), torch.tensor([1.0, 0.0, -2]).view(1, 3, 1, 1, 1)
    raw = match_statistics(latents * scale + shift, reference * scale + shift, 0.7)
    torch.testing.assert_close((raw - shift) / scale, match_statistics(latents, reference, 0.7), rtol=0, atol=1e-5)


def test_channels_without_a_deviation_are_only_moved():
    constant, reference = torch.full((1, 2, 2, 2, 2), 5.0), _latents(1, 2, 2, 2, 2)
    matched = match_statistics(constant, reference)
    torch.testing.assert_close(matched, reference.mean((2, 3, 4), keepdim=True).expand_as(matched))
    single = match_statistics(_latents(1, 2, 1, 1, 1, seed=2), _latents(1, 2, 1, 1, 1))
    torch.testing.assert_close(single, _latents(1, 2, 1, 1, 1))


def test_samples_and_channels_must_agree():
    with pytest.raises(ShapeError, match="same samples and channels"):
        match_statistics(_latents(1, 3, 1, 2, 2), _latents(1, 2, 1, 2, 2))


def test_half_precision_is_computed_in_float32():
    latents, reference = _latents(1, 2, 3, 8, 8) * 0.01 + 100, _latents(1, 2, 3, 4, 4)
    found = match_statistics(latents.bfloat16(), reference.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("compression", [0.25, 0.6, 1.0])
def test_tones(compression):
    values = [-4.0, -1.0, 0.0, 0.5, 1.0, 20.0]
    found = tone_map(torch.tensor(values), compression)
    expected = [v * (1 - 0.6 * compression / (1 + math.exp(-3 * compression * (abs(v) - 1)))) for v in values]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found[-1] == pytest.approx(20 * (1 - 0.6 * compression), rel=1e-4), "large values lose most"


def test_no_compression_changes_nothing_and_more_than_all_is_refused():
    latents = _latents(1, 2, 1, 2, 2)
    assert torch.equal(tone_map(latents, 0.0), latents)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(RequestError, match="tone_map_compression_ratio"):
            tone_map(latents, wrong)
