"""Haar transform, weighted L1, PSNR and SSIM against known values."""

from __future__ import annotations

import math

import pytest
import torch

from vgen.training.losses.haar import haar_distance, haar_level, inverse_haar_level
from vgen.training.losses.pixels import dissimilarity, foreground_weights, psnr, ssim, weighted_l1, weighted_square


@pytest.mark.parametrize("size", [(8, 4, 4), (17, 8, 8), (1, 8, 8), (9, 5, 6), (5, 1, 4)])
def test_haar_reconstructs(size: tuple[int, int, int]) -> None:
    clip = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    restored = inverse_haar_level(haar_level(clip), size)
    torch.testing.assert_close(restored, clip, rtol=0, atol=1e-12)


def test_haar_is_orthonormal_and_puts_constants_into_the_low_band() -> None:
    clip = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    energy = sum(float(band.square().sum()) for band in haar_level(clip))
    assert energy == pytest.approx(float(clip.square().sum()))
    low, *high = haar_level(torch.full((1, 1, 2, 2, 2), 3.0))
    assert float(low) == pytest.approx(3.0 * math.sqrt(8))
    assert len(high) == 7
    assert all(not band.any() for band in high)


def test_haar_distance_of_a_constant() -> None:
    # Three levels halve 8 x 8 x 8 to one low coefficient 2 * 8^1.5; all other 511 are zero.
    distance = haar_distance(torch.full((1, 1, 8, 8, 8), 2.0), levels=3)
    assert float(distance) == pytest.approx(2.0 * 8**1.5 / 512)


def test_haar_distance_weighs_the_foreground() -> None:
    difference = torch.zeros(1, 3, 5, 8, 8)
    difference[..., :4, :4] = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(1, 5, 8, 8, dtype=torch.bool)
    masks[..., :4, :4] = True
    plain = haar_distance(difference)
    heavy = haar_distance(difference, foreground_weights(masks, 9.0, margin=0))
    assert float(heavy) > 2 * float(plain)
    assert float(haar_distance(difference, torch.full((1, 1, 5, 8, 8), 4.0))) == pytest.approx(float(plain), rel=1e-5)


def test_foreground_weights_and_weighted_l1() -> None:
    masks = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    masks[0, 0, 2, 2] = True
    weights = foreground_weights(masks, 9.0)
    assert int((weights == 9).sum()) == 9
    assert int((weights == 1).sum()) == 16
    difference = torch.zeros(1, 3, 1, 5, 5)
    difference[:, :, 0, 2, 2] = 2.0
    assert float(weighted_l1(difference, weights)) == pytest.approx(2 * 9 / (9 * 9 + 16))
    assert float(weighted_square(difference, weights)) == pytest.approx(4 * 9 / (9 * 9 + 16))


def test_psnr_whole_and_masked() -> None:
    first = torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8)
    second = first.clone()
    second[0, 0, 0, 0] = 255
    assert psnr(first, second) == pytest.approx(10 * math.log10(4))
    masks = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    masks[0, 0, 0, 0] = True
    assert psnr(first, second, masks) == pytest.approx(0.0)
    assert psnr(first, first) > 100


def test_ssim_agrees_with_the_reference() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (1, 2, 24, 24, 3), generator=generator).byte()
    second = (first.int() + torch.randint(-40, 41, first.shape, generator=generator)).clamp(0, 255).byte()
    expected = [
        metrics.structural_similarity(
            first[0, frame].numpy(),
            second[0, frame].numpy(),
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        for frame in range(2)
    ]
    assert ssim(first, second) == pytest.approx(sum(expected) / 2, abs=0.01)
    assert ssim(first, first) == pytest.approx(1.0)


def test_dissimilarity_is_what_ssim_lacks_also_under_autocast_and_teaches_flatness() -> None:
    drawn = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8, generator=drawn)
    second = (first.float() + 12 * torch.randn(first.shape, generator=drawn)).clamp(0, 255).byte()
    one, two = (clip.permute(0, 4, 1, 2, 3).float() / 127.5 - 1 for clip in (first, second))
    expected = 1 - ssim(first, second)
    assert expected > 0.01
    assert float(dissimilarity(one, two)) == pytest.approx(expected, abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(dissimilarity(one, two)) == pytest.approx(expected, abs=1e-5)
    flat = torch.zeros(1, 3, 1, 32, 32)
    noisy = (0.02 * torch.randn(flat.shape, generator=drawn)).requires_grad_()
    before = dissimilarity(flat, noisy)
    before.backward()
    assert noisy.grad is not None
    smoother = noisy.detach() - 0.005 * noisy.grad / noisy.grad.abs().max()
    assert float(dissimilarity(flat, smoother)) < float(before.detach())
