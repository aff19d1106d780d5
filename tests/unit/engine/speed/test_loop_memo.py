"""What a loop remembers is found again only where nothing that it was made from has changed."""

from __future__ import annotations

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from peft import LoraConfig

from vgen.engine.speed import fast_path as fast_path_module
from vgen.engine.speed.fast_path import fast_path
from vgen.engine.speed.loop_memo import Memo, TextRows, text_rows, weight_digest
from vgen.models import VideoDiT
from vgen.ops import switches

CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "num_layers": 2,
    "caption_channels": 6,
}


def _dit() -> VideoDiT:
    torch.manual_seed(0)
    dit = VideoDiT(**CONFIG).eval()
    for parameter in dit.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return dit


def _call(lengths=(6, 2), seed=1):
    noise = torch.Generator().manual_seed(seed)
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    return {
        "hidden_states": torch.randn(2, 8, 4, generator=noise),
        "encoder_hidden_states": torch.randn(2, 6, 6, generator=noise),
        "timestep": torch.tensor([3.0, 500.0]),
        "encoder_attention_mask": mask,
        "video_coords": torch.rand(1, 3, 8, generator=noise),
        "return_dict": False,
    }


def _close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(6, 2), (3, 3), (6, 6), (1, 4), (0, 5)])
def test_a_loop_gives_what_calls_alone_give(lengths):
    dit, call = _dit(), _call(lengths)
    alone = [dit(**{**call, "timestep": torch.tensor([t, t])})[0] for t in (900.0, 300.0, 10.0)]
    with fast_path(dit):
        together = [dit(**{**call, "timestep": torch.tensor([t, t])})[0] for t in (900.0, 300.0, 10.0)]
    for one, other in zip(together, alone, strict=True):
        _close(one, other)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_loop_equals_diffusers():
    dit, call = _dit(), _call()
    peer = LTXVideoTransformer3DModel(**CONFIG).eval()
    peer.load_state_dict(dit.state_dict())
    expected = peer(**{**call, "encoder_attention_mask": call["encoder_attention_mask"].float()})[0]
    with fast_path(dit):
        for _ in range(2):
            _close(dit(**call)[0], expected)


@torch.no_grad()
def test_the_text_is_projected_once():
    dit, call, seen = _dit(), _call((3, 2)), []
    dit.caption_projection.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    for block in dit.transformer_blocks:
        block.attn2.to_k.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    with fast_path(dit):
        for _ in range(3):
            dit(**call)
    assert seen == [(2, 3, 6)] + [(1, 3, 24), (1, 2, 24)] * 2  # three of six tokens, one pair of keys a sample
    seen.clear()
    with fast_path(dit), switches.without("trimmed_text"):
        dit(**call)
    assert seen == [(2, 6, 6)] + [(2, 6, 24)] * 2


@torch.no_grad()
@pytest.mark.parametrize("field", ["encoder_hidden_states", "encoder_attention_mask", "video_coords"])
def test_inputs_changed_in_place_are_seen(field):
    dit, call = _dit(), _call()
    with fast_path(dit):
        before = dit(**call)[0]
        call[field][...] = _call((2, 5), seed=5)[field]
        after = dit(**call)[0]
    _close(after, dit(**call)[0])
    assert (after - before).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["caption_projection.linear_1", "transformer_blocks.1.attn2.to_v"])
def test_weights_changed_in_place_are_seen(name):
    dit, call = _dit(), _call()
    with fast_path(dit):
        before = dit(**call)[0]
        dit.get_submodule(name).weight.mul_(1.5)
        after = dit(**call)[0]
    _close(after, dit(**call)[0])
    assert (after - before).abs().max() > 1e-4


def _write(weight, how):
    """Change a weight past torch's counter of changes."""
    changed = {"scaled": weight * 1.5, "rows": weight.roll(1, 0), "columns": weight.roll(1, -1)}[how]
    weight.data.copy_(changed)


@torch.no_grad()
@pytest.mark.parametrize("how", ["scaled", "rows", "columns"])
@pytest.mark.parametrize(
    "name", ["caption_projection.linear_1", "transformer_blocks.1.attn2.to_v", "time_embed.linear"]
)
def test_weights_written_through_data_are_seen(name, how):
    dit, call = _dit(), _call()
    with fast_path(dit) as path:
        path.expect_timesteps(torch.tensor([3.0, 500.0]))
        before, version = dit(**call)[0], dit.get_submodule(name).weight._version
        _write(dit.get_submodule(name).weight, how)
        assert dit.get_submodule(name).weight._version == version
        after = dit(**call)[0]
    _close(after, dit(**call)[0])
    assert (after - before).abs().max() > 1e-4


@torch.no_grad()
def test_a_lora_fused_and_unloaded_within_a_loop_is_seen():
    """Then layers, addresses and counters are those of the start; only the content is not."""
    dit, call = _dit(), _call()
    with fast_path(dit):
        before = dit(**call)[0]
        dit.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=False), "one")
        dit.fuse_lora()
        dit.unload_lora()
        after = dit(**call)[0]
    _close(after, dit(**call)[0])
    assert (after - before).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (5, 7), (6, 8), (600, 1001)])
def test_a_digest_sees_every_single_change(shape, dtype):
    weight = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))
    seen, count = {weight_digest([weight])}, weight.numel()
    places = {0, count // 2, count - 1}
    for place in places:
        weight.data.view(-1)[place] *= 1.01
        seen.add(weight_digest([weight]))
    if count > 1:
        weight.data.copy_(weight.roll(1, 0))
        seen.add(weight_digest([weight]))
    assert len(seen) == 1 + len(places) + (count > 1)
    assert weight_digest([weight]) == weight_digest([weight])
    rest = weight_digest([torch.ones(3, device="meta"), weight])
    assert rest != weight_digest([weight])


@torch.no_grad()
def test_a_lora_that_is_rescaled_within_a_loop_is_seen():
    dit, call = _dit(), _call()
    dit.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=False), "one")
    with fast_path(dit):
        found = []
        for weight in (1.0, 0.25):
            dit.set_adapters(["one"], [weight])
            found.append(dit(**call)[0])
            found.append(dit(**call)[0])
        dit.disable_adapters()
        found.append(dit(**call)[0])
    expected = []
    dit.enable_adapters()
    for weight in (1.0, 0.25):
        dit.set_adapters(["one"], [weight])
        expected += [dit(**call)[0]] * 2
    dit.disable_adapters()
    expected.append(dit(**call)[0])
    for one, other in zip(found, expected, strict=True):
        _close(one, other)
    assert (expected[0] - expected[2]).abs().max() > 1e-4 < (expected[2] - expected[4]).abs().max()


def test_training_remembers_nothing():
    dit, call = _dit(), _call()
    with fast_path(dit):
        dit(**call)[0].sum().backward()
        first = dit.caption_projection.linear_1.weight.grad.clone()
        dit.zero_grad()
        dit(**call)[0].sum().backward()
    torch.testing.assert_close(dit.caption_projection.linear_1.weight.grad, first)
    assert first.abs().max() > 0


def test_tensors_of_inference_mode_are_computed_anew():
    dit = _dit()
    with torch.inference_mode():
        call = _call()
        alone = dit(**call)[0]
        with fast_path(dit):
            dit(**call)
            call["encoder_hidden_states"].mul_(2)
            changed = dit(**call)[0]
        _close(changed, dit(**call)[0])
        assert (changed - alone).abs().max() > 1e-3


def test_the_memory_is_bounded_and_ends_with_the_loop():
    memo, made = Memo(), []
    with torch.no_grad():
        for value in range(20):
            memo.get("name", (torch.full((1,), float(value)),), lambda value=value: made.append(value))
    assert made == list(range(20)) and len(memo._kept["name"]) == 4
    dit = _dit()
    with fast_path(dit):
        assert dit.transformer_blocks[0].attn2.text_keeper is dit.fast_path is not None
    assert dit.fast_path is None and dit.transformer_blocks[0].attn2.text_keeper is None


def test_rows_of_equal_length_are_grouped():
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    assert text_rows(mask) == (TextRows(0, 2, 2), TextRows(2, 3, 1), TextRows(3, 4, 2))
    assert text_rows(torch.tensor([[True, False, True]])) is None


def _timesteps(dit, found):
    """Records how many timesteps each embedding was asked for."""
    dit.time_embed.register_forward_pre_hook(lambda _, inputs: found.append(len(inputs[0])))


@torch.no_grad()
@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("table_bytes", [64 << 20, 0])
def test_all_timesteps_are_embedded_in_one_batch(monkeypatch, by_token, table_bytes):
    monkeypatch.setattr(fast_path_module, "_MOST_BYTES", table_bytes)
    dit, call, seen = _dit(), _call(), []
    steps = [torch.full((2, 8), t) if by_token else torch.full((2,), t) for t in (900.0, 300.5, 10.0)]
    if by_token:
        steps = [torch.minimum(step, torch.linspace(0, 500, 8)[None]) for step in steps]
    alone = [dit(**{**call, "timestep": step})[0] for step in steps]
    _timesteps(dit, seen)
    expected = torch.cat([step.flatten() for step in steps]).unique()
    with fast_path(dit) as path:
        path.expect_timesteps(expected)
        together = [dit(**{**call, "timestep": step})[0] for step in steps]
        other = dit(**{**call, "timestep": steps[0] + 1})[0]
    assert seen == [len(expected), steps[0].numel()]  # the last one was not announced
    for one, before in zip(together, alone, strict=True):
        _close(one, before)
    _close(other, dit(**{**call, "timestep": steps[0] + 1})[0])


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["time_embed.linear.weight", "transformer_blocks.1.scale_shift_table", "scale_shift_table"]
)
def test_modulation_follows_weights_changed_in_place(name):
    dit, call = _dit(), _call()
    with fast_path(dit) as path:
        path.expect_timesteps(torch.tensor([3.0, 500.0]))
        before = dit(**call)[0]
        dit.get_parameter(name).mul_(1.5)
        after = dit(**call)[0]
    _close(after, dit(**call)[0])
    assert (after - before).abs().max() > 1e-4


@torch.no_grad()
def test_too_many_timesteps_are_left_to_their_steps():
    dit, call, seen = _dit(), _call(), []
    _timesteps(dit, seen)
    with fast_path(dit) as path:
        path.expect_timesteps(torch.arange(fast_path_module.MOST_TIMESTEPS + 1.0))
        dit(**call)
    dit(**call)  # outside a loop nothing is expected
    assert seen == [2, 2]


@torch.no_grad()
def test_a_block_that_is_hooked_into_adds_its_own_table():
    dit, call = _dit(), _call()
    alone = dit(**call)[0]
    dit.transformer_blocks[1].register_forward_pre_hook(lambda *_: None)
    with fast_path(dit) as path:
        path.expect_timesteps(torch.tensor([3.0, 500.0]))
        _close(dit(**call)[0], alone)


@torch.no_grad()
@pytest.mark.parametrize("by_token", [False, True])
def test_in_bfloat16_the_error_stays_that_of_calls_alone(by_token):
    dit, call = _dit(), _call()
    step = torch.linspace(0, 1000, 16).reshape(2, 8) if by_token else torch.tensor([300.0, 700.0])
    call["timestep"] = step
    truth = dit(**call)[0]
    dit.to(torch.bfloat16)
    for name in ("hidden_states", "encoder_hidden_states"):
        call[name] = call[name].bfloat16()
    plain = dit(**call)[0]
    with fast_path(dit) as path:
        path.expect_timesteps(step.unique())
        hoisted = dit(**call)[0]
    errors = [(found.float() - truth).square().mean().sqrt() for found in (hoisted, plain)]
    assert 0 < errors[0] <= 1.1 * errors[1]


def test_under_inference_mode_a_call_embeds_its_own_timesteps():
    dit, call, seen = _dit(), _call(), []
    with torch.no_grad():
        alone = dit(**call)[0]
    _timesteps(dit, seen)
    with torch.inference_mode(), fast_path(dit) as path:
        path.expect_timesteps(torch.tensor([3.0, 400.0, 500.0]))
        _close(dit(**call)[0], alone)
    assert seen == [2]
