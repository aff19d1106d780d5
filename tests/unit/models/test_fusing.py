"""Linear layers moved together in memory give the same numbers, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn

from vgen.models import VideoDiT
from vgen.models.fusing import move_together, neighbours
from vgen.ops import switches


def _layers(bias=True):
    torch.manual_seed(0)
    return [nn.Linear(8, size, bias=bias).eval() for size in (6, 6, 10)]


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_one_product_gives_what_three_give(bias):
    layers, inputs = _layers(bias), torch.randn(2, 3, 8)
    before = [layer(inputs) for layer in layers]
    weights = [copy.deepcopy(layer.state_dict()) for layer in layers]
    assert neighbours(*layers) is None
    assert move_together(*layers)
    together = torch.nn.functional.linear(inputs, *neighbours(*layers))
    for one, other in zip(together.split([6, 6, 10], dim=-1), before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    for layer, weight in zip(layers, weights, strict=True):
        assert all(torch.equal(value, weight[name]) for name, value in layer.state_dict().items())
    with switches.without("fused_qkv"):
        assert neighbours(*layers) is None


@torch.no_grad()
def test_whatever_replaces_a_weight_ends_it():
    layers = _layers()
    move_together(*layers)
    layers[1].weight.mul_(2)  # in place: they stay together
    assert torch.equal(neighbours(*layers)[0][6:12], layers[1].weight)
    layers[1].weight.data = layers[1].weight.clone()
    assert neighbours(*layers) is None


def test_layers_in_training_are_left_alone():
    layers = [layer.train() for layer in _layers()]
    places = [layer.weight.data_ptr() for layer in layers]
    assert not move_together(*layers)
    assert places == [layer.weight.data_ptr() for layer in layers]
    move_together(*(layer.eval() for layer in layers))
    assert neighbours(*layers) is None  # gradients are wanted here


def test_a_model_saves_and_takes_a_lora_as_before(tmp_path):
    torch.manual_seed(0)
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "caption_channels": 6}
    dit = VideoDiT(in_channels=4, out_channels=4, num_layers=1, **size).eval()
    attention = dit.transformer_blocks[0].attn1
    tokens = torch.randn(1, 5, 24)
    with torch.no_grad():
        before = attention(tokens)
        assert move_together(attention.to_q, attention.to_k, attention.to_v)
        torch.testing.assert_close(attention(tokens), before, atol=1e-6, rtol=1e-5)
    dit.save_pretrained(tmp_path)
    again = VideoDiT.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in dit.state_dict().items())
    dit.add_adapter(LoraConfig(r=2, target_modules=["attn1.to_k"], init_lora_weights=False))
    with torch.no_grad():
        assert (attention(tokens) - before).abs().max() > 1e-4
