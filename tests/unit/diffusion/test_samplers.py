"""Stepping with a sigma per token."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from vgen.diffusion.conditions import token_sigmas
from vgen.diffusion.samplers import advance, renoise_hard

SIGMAS = [1.0, 0.8, 0.5, 0.2]


def _scheduler(**options):
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    scheduler.set_timesteps(sigmas=SIGMAS)
    return scheduler


def test_unknown_tokens_move_by_the_plain_step():
    tokens, velocity = torch.randn(1, 4, 2), torch.randn(1, 4, 2)
    strength = torch.zeros(1, 4)
    plain, per_token = _scheduler(), _scheduler()
    for timestep in plain.timesteps:
        tokens_plain = advance(plain, velocity, timestep, tokens)
        tokens = advance(per_token, velocity, timestep, tokens, strength)
        torch.testing.assert_close(tokens, tokens_plain)


def test_a_perfect_velocity_brings_every_token_to_its_clean_value():
    clean, noise = torch.randn(1, 4, 2), torch.randn(1, 4, 2)
    strength = torch.tensor([[0.0, 0.2, 0.5, 1.0]])
    start = token_sigmas(torch.tensor(1.0), strength)[..., None]
    tokens = (1 - start) * clean + start * noise
    scheduler = _scheduler()
    for timestep in scheduler.timesteps:
        before = tokens
        tokens = advance(scheduler, noise - clean, timestep, tokens, strength)
        waits = timestep / 1000 - 1e-6 >= 1 - strength
        assert torch.equal(tokens[waits], before[waits])
        assert (tokens[~waits] != before[~waits]).all()
    torch.testing.assert_close(tokens, clean, rtol=0, atol=1e-5)


def test_stochastic_steps_land_on_the_predicted_clean_latents():
    clean, noise = torch.randn(1, 4, 2), torch.randn(1, 4, 2)
    strength = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    start = token_sigmas(torch.tensor(1.0), strength)[..., None]
    tokens = (1 - start) * clean + start * noise
    scheduler = _scheduler(stochastic_sampling=True)
    generator = torch.Generator().manual_seed(0)
    for timestep in scheduler.timesteps:
        sigma = timestep / 1000
        velocity = (tokens - clean) / sigma
        tokens = advance(scheduler, velocity, timestep, tokens, strength, generator)
    torch.testing.assert_close(tokens, clean, rtol=0, atol=1e-5)


def test_only_hard_tokens_are_renoised():
    tokens, start, noise = (torch.randn(1, 3, 2) for _ in range(3))
    strength = torch.tensor([[0.0, 0.9, 1.0]])
    result = renoise_hard(tokens, start, noise, 0.15, torch.tensor(0.5), strength)
    assert torch.equal(result[:, :2], tokens[:, :2])
    torch.testing.assert_close(result[:, 2], start[:, 2] + 0.15 * 0.25 * noise[:, 2])
