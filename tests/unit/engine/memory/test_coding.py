"""What coding will take is known beforehand, and a budget is kept."""

from __future__ import annotations

import pytest
import torch

from vgen.engine.memory.coding import (
    WORKSPACE,
    CodingPlan,
    coding_within,
    decoding_peak,
    encoding_peak,
    plan_coding,
)
from vgen.engine.memory.rehearsal import LiveBytes
from vgen.errors import OutOfMemoryError, RequestError
from vgen.models import CausalVideoVAE
from vgen.request.fields import parse_bytes
from vgen.types import LatentShape


@pytest.fixture(scope="module")
def vae() -> CausalVideoVAE:
    return CausalVideoVAE(
        latent_channels=8,
        block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(16, 16, 32, 32),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    ).eval()


def _clip_bytes(shape: LatentShape, batch: int) -> int:
    return batch * 3 * (1 + 8 * (shape.frames - 1)) * shape.height * shape.width * 32 * 32 * 4


def test_the_rehearsal_counts_what_the_real_decoder_makes(vae: CausalVideoVAE) -> None:
    shape, latents = LatentShape(5, 4, 6), torch.zeros(2, 8, 5, 4, 6)
    plans = ((CodingPlan(None, None, 0), 0.05), (CodingPlan(8, None, 0), 0.05), (CodingPlan(8, (64, 96), 0), 0.2))
    for plan, tolerance in plans:
        rehearsed = decoding_peak(vae, shape, 2, plan=plan)
        plan.apply(vae)
        with torch.no_grad(), LiveBytes() as live:
            live.overlook(vae, latents)
            vae.decode(latents)
        clip = _clip_bytes(shape, 2)  # the workspace is for the network's tensors only
        assert (rehearsed - clip) / WORKSPACE + clip == pytest.approx(live.peak, rel=tolerance)
    vae.disable_tiling()
    vae.disable_streaming()


def test_pieces_that_are_sent_away_never_make_a_clip(vae: CausalVideoVAE) -> None:
    shape, latents = LatentShape(5, 4, 6), torch.zeros(2, 8, 5, 4, 6)
    with torch.no_grad(), LiveBytes() as live:
        live.overlook(vae, latents)
        for piece in vae.decode_in_pieces(latents):
            del piece
    assert decoding_peak(vae, shape, 2, clip=False) / WORKSPACE == pytest.approx(live.peak, rel=0.05)
    assert decoding_peak(vae, shape, 2, clip=False) < decoding_peak(vae, shape, 2)


def test_streaming_makes_memory_flat_in_time_but_for_the_clip(vae: CausalVideoVAE) -> None:
    streamed = CodingPlan(8, None, 0)
    short, long = (
        decoding_peak(vae, shape, plan=streamed) - _clip_bytes(shape, 1)
        for shape in (LatentShape(20, 4, 4), LatentShape(100, 4, 4))
    )
    assert long < 1.1 * short
    with LiveBytes() as live:  # with gradients clips are decoded whole
        vae.decoder(torch.empty(1, 8, 20, 4, 4))
    assert live.peak > 3 * short


def test_the_least_change_that_fits_is_chosen() -> None:
    vae = CausalVideoVAE(
        latent_channels=8,
        decoder_block_out_channels=(128,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )
    shape = LatentShape(2, 8, 12)
    whole = plan_coding(decoding_peak, vae, shape, 1, 10**12)
    assert (whole.num_frames, whole.tile) == (None, None)
    streamed = plan_coding(decoding_peak, vae, shape, 1, whole.peak_bytes - 1)
    assert (streamed.num_frames, streamed.tile) == (8, None)
    tiled = plan_coding(decoding_peak, vae, shape, 1, streamed.peak_bytes - 1)
    assert tiled.num_frames == 8
    assert tiled.tile is not None
    assert tiled.peak_bytes < streamed.peak_bytes < whole.peak_bytes
    with pytest.raises(OutOfMemoryError, match=r"vae_memory=1\.0 kB is too little .* MB; give that much"):
        plan_coding(decoding_peak, vae, shape, 1, 1000)


@torch.no_grad()
def test_decoding_within_a_budget_is_exact_and_leaves_no_trace(vae: CausalVideoVAE) -> None:
    latents = torch.randn(1, 8, 9, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(latents).sample
    budget = decoding_peak(vae, LatentShape(9, 4, 6), plan=CodingPlan(8, None, 0))
    with coding_within(decoding_peak, vae, LatentShape(9, 4, 6), 1, budget):
        assert vae.use_framewise_decoding
        assert not vae.use_tiling
        torch.testing.assert_close(vae.decode(latents).sample, expected, rtol=0, atol=1e-5)
    assert not vae.use_framewise_decoding
    with coding_within(decoding_peak, vae, LatentShape(9, 4, 6), 1, None):  # there is room for this on any machine
        assert torch.equal(vae.decode(latents).sample, expected)


@pytest.mark.parametrize(
    ("text", "expected"), [("4GB", 4 * 10**9), ("900 MiB", 900 * 2**20), ("1.5g", 1_500_000_000), ("512", 512)]
)
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "four", "0GB", "-1GB", "4XB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="not an amount of memory"):
        parse_bytes(text)


@torch.no_grad()
def test_encoding_is_planned_as_well(vae: CausalVideoVAE) -> None:
    shape = LatentShape(5, 4, 6)
    video = torch.rand(1, 3, 33, 128, 192, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = vae.encode(video).latent_dist.mean
    whole = plan_coding(encoding_peak, vae, shape, 1, 10**12)
    streamed = plan_coding(encoding_peak, vae, shape, 1, whole.peak_bytes - 1)
    tiled = plan_coding(encoding_peak, vae, shape, 1, streamed.peak_bytes - 1)
    assert (whole.num_frames, streamed.num_frames, streamed.tile) == (None, 8, None)
    assert tiled.tile is not None
    for plan, tolerance in ((whole, 0.05), (streamed, 0.05), (tiled, 0.2)):
        plan.apply(vae)
        with LiveBytes() as live:
            live.overlook(vae, video)
            made = vae.encode(video).latent_dist.mean
        assert plan.peak_bytes / WORKSPACE == pytest.approx(live.peak, rel=tolerance)
        if plan.tile is None:
            torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)
    vae.disable_tiling()
    vae.disable_streaming()
    with coding_within(encoding_peak, vae, shape, 1, streamed.peak_bytes):
        assert vae.use_framewise_encoding
    assert not vae.use_framewise_encoding
