"""Schedules against closed forms; the training density by its statistics."""

import math

import pytest
import torch

from vgen.diffusion import schedules
from vgen.errors import RequestError


def test_mu_is_a_line_and_clamped_only_when_asked():
    assert schedules.resolution_shift_mu(1024) == pytest.approx(0.95)
    assert schedules.resolution_shift_mu(4096) == pytest.approx(2.05)
    assert schedules.resolution_shift_mu(7168) == pytest.approx(3.15)
    assert schedules.resolution_shift_mu(320) < 0.95
    assert schedules.resolution_shift_mu(7168, clamp=True) == 2.05
    assert schedules.resolution_shift_mu(320, clamp=True) == 0.95


@pytest.mark.parametrize("steps", [2, 3, 8, 40])
def test_linear_quadratic(steps):
    sigmas = schedules.linear_quadratic(steps).double()
    linear = steps // 2
    torch.testing.assert_close(
        sigmas[: linear + 1], 1 - 0.025 / linear * torch.arange(linear + 1, dtype=torch.float64), rtol=0, atol=1e-6
    )
    drops = -torch.diff(torch.cat([sigmas, sigmas.new_zeros(1)]))
    assert (torch.diff(drops) > -1e-6).all(), "the steps never shrink"
    torch.testing.assert_close(torch.diff(drops[linear:], n=2), torch.zeros(max(steps - linear - 2, 0)).double(),
                               rtol=0, atol=1e-6)  # fmt: skip


def test_one_step_and_bad_numbers():
    assert schedules.linear_quadratic(1).tolist() == [1.0]
    with pytest.raises(RequestError, match="num_inference_steps=0"):
        schedules.linspace_sigmas(0)
    with pytest.raises(RequestError, match="linear_steps=8"):
        schedules.linear_quadratic(8, linear_steps=8)


@pytest.mark.parametrize("tokens", [320, 1024, 4096])
def test_training_density(tokens):
    draws = schedules.sample_training_sigmas(200_000, tokens, torch.Generator().manual_seed(3))
    assert draws.shape == (200_000,)
    assert draws.min() >= 0
    assert draws.max() <= 1
    mu = schedules.resolution_shift_mu(tokens)
    low, high = (1 / (1 + math.exp(-(mu + z))) for z in (-2.575829, 3.090232))
    middle = (1 / (1 + math.exp(-mu)) - low) / (high - low)
    below = (draws < middle).double().mean().item()
    assert below == pytest.approx(0.9 * 0.5 + 0.1 * middle, abs=0.01)


def test_training_density_with_a_shift_of_its_own():
    draws = schedules.sample_training_sigmas(100_000, 80, torch.Generator().manual_seed(3), uniform_share=0.0, mu=2.0)
    low, high = (1 / (1 + math.exp(-(2.0 + z))) for z in (-2.575829, 3.090232))
    middle = (1 / (1 + math.exp(-2.0)) - low) / (high - low)
    assert (draws < middle).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_uniform_share_reaches_small_sigmas():
    shares = {}
    for share in (0.0, 0.1):
        draws = schedules.sample_training_sigmas(400_000, 10_240, torch.Generator().manual_seed(4), uniform_share=share)
        shares[share] = (draws < 0.05).double().mean().item()
    assert shares[0.1] > 2 * shares[0.0]
    assert shares[0.1] == pytest.approx(0.9 * shares[0.0] + 0.1 * 0.05, abs=0.001)
    uniform = schedules.sample_training_sigmas(100_000, 320, torch.Generator().manual_seed(5), uniform_share=1.0)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.005)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.002)


def test_draws_are_those_of_the_generator():
    first, second = (schedules.sample_training_sigmas(8, 320, torch.Generator().manual_seed(6)) for _ in range(2))
    assert torch.equal(first, second)
