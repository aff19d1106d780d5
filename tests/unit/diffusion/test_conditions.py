"""Known tokens: where they go, how noisy they are, and that hidden pixels reach nothing."""

import pytest
import torch

from vgen.diffusion.conditions import (
    REFERENCE_FRAME,
    KnownLatents,
    arrange,
    cell_strength,
    loss_weight,
    num_extra_frames,
    token_sigmas,
)
from vgen.diffusion.tokens import pack
from vgen.errors import ShapeError
from vgen.types import LatentShape, Strides

SHAPE, STRIDES, CHANNELS = LatentShape(5, 2, 3), Strides(4, 8, 8), 2
FRAME = SHAPE.height * SHAPE.width


def _arrange(*known, batch=1, **options):
    return arrange(known, SHAPE, STRIDES, 8.0, channels=CHANNELS, batch=batch, **options)


def _latents(frames, seed=0, batch=1):
    return torch.randn(batch, CHANNELS, frames, 2, 3, generator=torch.Generator().manual_seed(seed))


def test_token_sigmas_and_loss_weight():
    strength = torch.tensor([[0.0, 0.3, 1.0], [0.0, 0.9, 0.5]])
    sigmas = token_sigmas(torch.tensor([0.8, 0.2]), strength)
    torch.testing.assert_close(sigmas, torch.tensor([[0.8, 0.7, 0.0], [0.2, 0.1, 0.2]]))
    assert loss_weight(strength).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_nothing_known_starts_from_noise():
    conditions = _arrange(batch=2)
    noise = torch.randn(2, SHAPE.num_tokens, CHANNELS)
    assert conditions.is_empty
    assert conditions.num_extra == 0
    assert torch.equal(conditions.start(noise), noise)


def test_a_first_frame_lies_in_place():
    given = _latents(1)
    conditions = _arrange(KnownLatents(given))
    noise = torch.randn(1, SHAPE.num_tokens, CHANNELS)
    start = conditions.start(noise)
    assert torch.equal(start[:, :FRAME], pack(given))
    assert torch.equal(start[:, FRAME:], noise[:, FRAME:])
    assert conditions.strength[0].tolist() == [1.0] * FRAME + [0.0] * 4 * FRAME


def test_a_reference_lies_before_the_clip():
    looks = _latents(1, seed=1)
    conditions = _arrange(KnownLatents(looks, REFERENCE_FRAME), KnownLatents(_latents(2)), prefix_latent_frames=2)
    start = conditions.start(torch.randn(1, SHAPE.num_tokens, CHANNELS))
    assert conditions.num_extra == FRAME and torch.equal(start[:, :FRAME], pack(looks))
    assert (conditions.coordinates[0, 0, :FRAME] == REFERENCE_FRAME / 8).all()
    assert torch.equal(conditions.video_tokens(start)[:, : 2 * FRAME], pack(_latents(2)))
    for wrong in (KnownLatents(looks, -3), KnownLatents(_latents(2), REFERENCE_FRAME)):
        with pytest.raises(ShapeError, match="lies before the clip"):
            _arrange(wrong)


def test_a_soft_prefix_starts_at_its_own_sigma():
    given = _latents(2)
    conditions = _arrange(KnownLatents(given, strength=0.75))
    noise = torch.randn(1, SHAPE.num_tokens, CHANNELS)
    start = conditions.start(noise)
    torch.testing.assert_close(start[:, : 2 * FRAME], 0.75 * pack(given) + 0.25 * noise[:, : 2 * FRAME])


@pytest.mark.parametrize("strength", [0.001, 0.3, 0.6, 0.9, 1.0])
def test_a_clip_to_start_from_is_mixed_with_what_is_given(strength):
    """(1 - s) of the noised clip and s of what is given in place; (1 - s) of its own noise in extra tokens."""
    given, later, fresh = _latents(1), _latents(1, 1), _latents(1, 2)
    conditions = _arrange(KnownLatents(given, strength=strength), KnownLatents(later, 16, strength, noise=fresh))
    noise, clip = (torch.randn(1, SHAPE.num_tokens, CHANNELS) for _ in range(2))
    start = conditions.start(noise, clip, torch.tensor(0.4))
    noised = 0.6 * clip + 0.4 * noise
    expected = noised.clone()
    expected[:, :FRAME] = (1 - strength) * noised[:, :FRAME] + strength * pack(given)
    extra = (1 - strength) * pack(fresh) + strength * pack(later)
    torch.testing.assert_close(start, torch.cat([extra, expected], dim=1))


def test_a_later_frame_becomes_extra_tokens_in_front():
    given = _latents(1)
    conditions = _arrange(KnownLatents(given, frame_index=16), batch=2)
    assert conditions.num_extra == FRAME
    assert conditions.coordinates[0, 0, :FRAME].unique().tolist() == [2.0]
    assert conditions.strength.shape == (2, FRAME + SHAPE.num_tokens)
    assert (conditions.strength[:, FRAME:] == 0).all()
    noise = torch.randn(2, SHAPE.num_tokens, CHANNELS)
    start = conditions.start(noise)
    torch.testing.assert_close(start[:, :FRAME], pack(given).expand(2, -1, -1))
    assert torch.equal(conditions.video_tokens(start), noise)


def test_a_later_clip_may_keep_only_its_prefix_extra():
    given = _latents(3)
    whole = _arrange(KnownLatents(given, frame_index=8))
    assert whole.num_extra == 3 * FRAME
    assert (whole.video_tokens(whole.strength.unsqueeze(-1)) == 0).all()
    split = _arrange(KnownLatents(given, frame_index=8), prefix_latent_frames=2)
    assert split.num_extra == 2 * FRAME
    assert torch.equal(split.clean_latents[:, 4 * FRAME :], pack(given[:, :, 2:]))
    placed = split.video_tokens(split.strength.unsqueeze(-1))[0, :, 0]
    assert placed.tolist() == [0.0] * 4 * FRAME + [1.0] * FRAME
    assert num_extra_frames(0, 3, None) == 0


def test_training_and_sampling_agree():
    """At a given sigma, training's input is what sampling would stand at if the model were perfect."""
    clean, noise = (torch.randn(1, SHAPE.num_tokens, CHANNELS) for _ in range(2))
    conditions = _arrange(KnownLatents(_latents(1)), KnownLatents(_latents(1, 1), 12, 0.5, noise=_latents(1, 2)))
    sigma = torch.tensor([0.8])
    tokens = conditions.noised(noise, sigma, clean)
    sigmas = token_sigmas(sigma, conditions.strength)
    known = torch.cat([conditions.extra.latents, conditions.clean_latents[:, :FRAME], clean[:, FRAME:]], dim=1)
    fresh = torch.cat([conditions.extra.noise, noise], dim=1)
    torch.testing.assert_close(tokens, (1 - sigmas[..., None]) * known + sigmas[..., None] * fresh)
    assert sigmas[0, :FRAME].unique().item() == 0.5
    assert torch.equal(tokens[:, FRAME : 2 * FRAME], conditions.clean_latents[:, :FRAME])


def test_masked_extra_tokens_are_left_out_where_nothing_is_given():
    strength = torch.zeros(1, 1, 1, 2, 3)
    strength[..., 0, 1:] = 1
    conditions = _arrange(KnownLatents(_latents(1), 16, strength))
    assert conditions.num_extra == 2
    assert conditions.coordinates[0, 1:, :2].tolist() == [[0.0, 0.0], [8.0, 16.0]]


def test_a_token_is_as_strong_as_its_weakest_latent():
    shape, strength = LatentShape(5, 2, 4), torch.ones(1, 1, 1, 2, 4)
    strength[..., 1, 3] = 0
    latents = torch.randn(1, CHANNELS, 1, 2, 4)
    for frame_index in (0, 16):
        known = KnownLatents(latents, frame_index, strength)
        conditions = arrange([known], shape, STRIDES, 8.0, channels=CHANNELS, batch=1, patch_size=2)
        assert conditions.num_extra == (1 if frame_index else 0)
        assert conditions.strength[0].tolist() == ([1.0] + [0.0] * 10 if frame_index else [1.0] + [0.0] * 9)
        start = conditions.start(torch.zeros(1, 10, 4 * CHANNELS))
        assert torch.equal(start[:, :1], pack(latents, 2)[:, :1])
        assert not start[:, 1:].any()


def test_the_stronger_piece_holds_where_two_overlap():
    weak, strong = _latents(2, 1), _latents(1, 2)
    conditions = _arrange(KnownLatents(weak, strength=0.5), KnownLatents(strong, strength=0.9))
    assert torch.equal(conditions.clean_latents[:, :FRAME], pack(strong))
    assert torch.equal(conditions.clean_latents[:, FRAME : 2 * FRAME], pack(weak[:, :, 1:]))


def test_a_cell_is_given_only_where_all_its_pixels_are():
    mask = torch.ones(1, 1, 9, 16, 16)
    mask[0, 0, 6, 15, 0] = 0
    strength = cell_strength(mask, STRIDES)
    assert strength.shape == (1, 1, 3, 2, 2)
    expected = torch.ones(3, 2, 2)
    expected[2, 1, 0] = 0
    assert torch.equal(strength[0, 0], expected)


def test_bad_pieces_are_refused():
    with pytest.raises(ShapeError, match="past the last one, 16"):
        _arrange(KnownLatents(_latents(3), frame_index=12))
    with pytest.raises(ShapeError, match="do not fit the clip"):
        _arrange(KnownLatents(torch.zeros(1, CHANNELS, 1, 3, 3)))
    with pytest.raises(ShapeError, match="before the clip"):
        _arrange(KnownLatents(_latents(1), frame_index=-1))
    with pytest.raises(ShapeError, match="give its noise"):
        _arrange(KnownLatents(_latents(1), frame_index=4, strength=0.5))
