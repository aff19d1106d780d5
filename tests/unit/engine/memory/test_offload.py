"""Offloaded blocks compute what the model computes, bit for bit, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vgen.engine.memory.offload import BlockOffload, offload_blocks, resident_bytes, weight_bytes
from vgen.engine.memory.rehearsal import LiveBytes
from vgen.engine.session import inference_session
from vgen.engine.speed.fast_path import fast_path
from vgen.errors import RequestError
from vgen.models import VideoDiT
from vgen.models.fusing import move_together, neighbours


@pytest.fixture
def transformer() -> VideoDiT:
    return _transformer()


def _transformer(num_layers: int = 5) -> VideoDiT:
    torch.manual_seed(0)
    model = VideoDiT(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=num_layers,
        caption_channels=6,
    )
    return model.eval()


def _inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 12, 4, generator=generator),
        "encoder_hidden_states": torch.randn(2, 3, 6, generator=generator),
        "timestep": torch.tensor([500.0, 500.0]),
        "video_coords": torch.rand(1, 3, 12, generator=generator),
    }


def _run(model: VideoDiT, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    return model(**(inputs or _inputs()), return_dict=False)[0]


@pytest.mark.parametrize("prefetch", [False, True])
@torch.no_grad()
def test_the_result_is_the_same_to_the_bit(transformer: VideoDiT, prefetch: bool) -> None:
    expected = _run(transformer)
    saved = copy.deepcopy(transformer.state_dict())
    offload = offload_blocks(transformer, transformer.transformer_blocks, "cpu", prefetch=prefetch)
    for _ in range(3):
        assert torch.equal(_run(transformer), expected)
    assert offload.num_copies >= 3 * 5 - 2  # five blocks in two places: they really came and went
    for name, value in transformer.state_dict().items():
        assert torch.equal(value, saved[name]), name
    offload.remove()
    assert torch.equal(_run(transformer), expected)


@torch.no_grad()
def test_what_a_loop_remembers_is_found_again(transformer: VideoDiT) -> None:
    expected = _run(transformer)
    for block in transformer.transformer_blocks:
        assert move_together(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
    offload_blocks(transformer, transformer.transformer_blocks, "cpu")
    found: list[int] = []
    for block in transformer.transformer_blocks:
        attention = block.attn1
        block.attn1.register_forward_pre_hook(
            lambda module, args, layers=attention: found.append(
                neighbours(layers.to_q, layers.to_k, layers.to_v) is not None
            )
        )
    inputs = _inputs()
    with fast_path(transformer) as path:
        first = _run(transformer, inputs)
        kept = {name: len(values) for name, values in path.memo._kept.items()}
        assert torch.equal(_run(transformer, inputs), first)
        assert {name: len(values) for name, values in path.memo._kept.items()} == kept
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)
    assert all(found)
    assert len(found) == 10


def _frozen_with_adapters(model: VideoDiT) -> list[nn.Parameter]:
    from peft import LoraConfig

    model.requires_grad_(False)
    torch.manual_seed(2)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    return [value for value in model.parameters() if value.requires_grad]


def _gradients(model: VideoDiT) -> list[torch.Tensor]:
    model.zero_grad()
    _run(model).square().sum().backward()
    return [value.grad.clone() for value in model.parameters() if value.grad is not None]


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_lora_are_the_same_to_the_bit(
    transformer: VideoDiT, checkpointing: bool, prefetch: bool
) -> None:
    trained = _frozen_with_adapters(transformer)
    expected = _gradients(transformer)
    assert len(expected) == len(trained)
    assert all(float(gradient.abs().sum()) > 0 for gradient in expected)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    offload = offload_blocks(transformer, transformer.transformer_blocks, "cpu", frozen_only=True, prefetch=prefetch)
    frozen = {name: value.clone() for name, value in transformer.state_dict().items()}
    for _ in range(2):
        for gradient, other in zip(_gradients(transformer), expected, strict=True):
            assert torch.equal(gradient, other)
    assert offload.num_copies >= 5 + 3 + 3 + 3  # there and back again, but for the two that are in place at each turn
    for name, value in transformer.state_dict().items():
        assert torch.equal(value, frozen[name]), name


@pytest.mark.parametrize(("num_layers", "prefetch"), [(2, False), (4, True), (5, True)])
@torch.no_grad()
def test_a_session_sees_a_change_on_the_host(num_layers: int, prefetch: bool) -> None:
    """As fusing a LoRA does it, between two calls: of two blocks both are still on the device, of four the first is."""
    transformer, other = _transformer(num_layers), _transformer(num_layers)
    offload_blocks(transformer, transformer.transformer_blocks, "cpu", prefetch=prefetch)
    pipeline = SimpleNamespace(transformer=transformer, vae=SimpleNamespace(device=torch.device("cpu")))
    with inference_session(pipeline):
        before = _run(transformer)
    for model in (transformer, other):
        for block in model.transformer_blocks:
            block.ff.net[2].weight.data.mul_(2)
    with inference_session(pipeline):
        after = _run(transformer)
    assert torch.equal(after, _run(other)) and not torch.equal(after, before)


@pytest.mark.parametrize(("blocks", "prefetch"), [(2, False), (2, True), (4, True)])
@torch.no_grad()
def test_weights_written_between_calls_are_what_comes_next(transformer: VideoDiT, blocks: int, prefetch: bool) -> None:
    """Outside of a session nobody calls `forget`: blocks that were left in place must not be used again."""
    del transformer.transformer_blocks[blocks:]
    other = copy.deepcopy(transformer)
    offload = offload_blocks(transformer, transformer.transformer_blocks, "cpu", prefetch=prefetch)
    _run(transformer)
    for index in range(len(transformer.transformer_blocks)):
        for model in (transformer, other):
            weight = model.transformer_blocks[index].ff.net[2].weight
            weight.data.copy_(weight * 2)
        assert torch.equal(_run(transformer), _run(other)), index
    offload.weights_fixed = True
    _run(transformer)
    before = offload.num_copies
    _run(transformer)
    assert offload.num_copies - before == (0 if blocks == 2 else blocks)


def test_the_device_holds_two_blocks(transformer: VideoDiT) -> None:
    blocks = transformer.transformer_blocks
    resident, whole = resident_bytes(transformer, blocks), weight_bytes(transformer)
    one = weight_bytes(blocks[0])
    assert resident == whole - 3 * one
    with LiveBytes() as live:
        offload = BlockOffload(blocks, "cpu")
        held = live.now()
    assert offload.num_copies == 0
    # each run of weights begins at a multiple of 256 bytes; these are tiny
    assert 7 * one <= held <= 7 * (one + 256 * len(list(blocks[0].parameters())))


def test_what_cannot_be_offloaded_is_refused(transformer: VideoDiT) -> None:
    shared = copy.deepcopy(transformer)
    shared.transformer_blocks[1].ff = shared.transformer_blocks[0].ff
    with pytest.raises(RequestError, match="blocks 0 and 1 share a weight"):
        BlockOffload(shared.transformer_blocks, "cpu")

    class Odd(torch.Tensor):
        pass

    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Odd))
    with pytest.raises(RequestError, match="type Odd, such as quantised ones"):
        BlockOffload([layer], "cpu")


@pytest.fixture(autouse=True)
def _fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
