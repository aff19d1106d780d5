"""The conversions undo each other, for whole latents, tokens and per-token sigmas."""

import pytest
import torch

from vgen.diffusion import flow
from vgen.errors import ShapeError

CASES = {
    "latents, a sigma per sample": ((2, 3, 2, 4, 5), (2,)),
    "latents, a sigma per cell": ((2, 3, 2, 4, 5), (2, 1, 2, 4, 5)),
    "tokens, a sigma per sample": ((2, 7, 3), (2,)),
    "tokens, a sigma per token": ((2, 7, 3), (2, 7)),
}


def _draw(shape, sigma_shape):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    sigmas = torch.rand(sigma_shape, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    return clean, noise, sigmas


@pytest.mark.parametrize("case", CASES)
def test_round_trips_in_float64(case):
    clean, noise, sigmas = _draw(*CASES[case])
    noisy, velocity = flow.interpolate(clean, noise, sigmas), flow.velocity_target(clean, noise)
    torch.testing.assert_close(flow.velocity_to_clean(noisy, velocity, sigmas), clean, rtol=0, atol=1e-12)


def test_ends_of_the_path():
    clean, noise, _ = _draw((2, 7, 3), (2,))
    sigmas = torch.tensor([0.0, 1.0], dtype=torch.float64)
    mixed = flow.interpolate(clean, noise, sigmas)
    assert torch.equal(mixed[0], clean[0])
    assert torch.equal(mixed[1], noise[1])


def test_half_precision_is_computed_in_float32():
    clean, noise, sigmas = (tensor.float() for tensor in _draw((2, 7, 3), (2, 7)))
    low = flow.interpolate(clean.bfloat16(), noise.bfloat16(), sigmas)
    high = flow.interpolate(clean.bfloat16().float(), noise.bfloat16().float(), sigmas)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, high.bfloat16())


def test_shapes_that_do_not_fit_are_refused():
    clean, noise, _ = _draw((2, 7, 3), (2,))
    with pytest.raises(ShapeError, match="differ"):
        flow.interpolate(clean, noise[:, :5], torch.zeros(2))
    with pytest.raises(ShapeError, match="sigmas of shape"):
        flow.interpolate(clean, noise, torch.zeros(3))
