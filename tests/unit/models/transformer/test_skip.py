"""Leaving parts of blocks out: for whom, of which blocks, and nothing else."""

from __future__ import annotations

import pytest
import torch

from vgen.errors import RequestError
from vgen.models.transformer.skip import plan_skips
from vgen.types import SKIP_MODES, SkipLayers


@torch.no_grad()
def test_nothing_left_out_is_the_plain_forward(dit, dit_inputs):
    plain = dit(**dit_inputs).sample
    for skip in (None, (None,), (None, None), SkipLayers("attention_values", ())):
        assert torch.equal(dit(**dit_inputs, skip_layers=skip).sample, plain)


@pytest.mark.parametrize("mode", SKIP_MODES)
@torch.no_grad()
def test_each_part_of_a_batch_gets_its_own(dit, dit_inputs, mode):
    """Parts (nothing, first block, both blocks) of one batch equal three forwards."""
    skips = (None, SkipLayers(mode, (0,)), SkipLayers(mode, (0, 1)))
    alone = [dit(**dit_inputs, skip_layers=skip).sample for skip in skips]
    for first, second in ((0, 1), (1, 2)):
        assert (alone[first] - alone[second]).abs().max() > 1e-4
    together = {name: torch.cat([value] * 3) for name, value in dit_inputs.items()}
    joined = dit(**together, skip_layers=skips).sample
    torch.testing.assert_close(joined, torch.cat(alone), rtol=0, atol=1e-6)


@torch.no_grad()
def test_several_modes_in_one_batch(dit, dit_inputs):
    skips = tuple(SkipLayers(mode, (1,)) for mode in SKIP_MODES)
    alone = [dit(**dit_inputs, skip_layers=skip).sample for skip in skips]
    together = {name: torch.cat([value] * 3) for name, value in dit_inputs.items()}
    torch.testing.assert_close(dit(**together, skip_layers=skips).sample, torch.cat(alone), rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_left_out_block_is_not_computed(dit, dit_inputs):
    dit.transformer_blocks[0].attn1.to_q.weight.fill_(float("nan"))
    result = dit(**dit_inputs, skip_layers=SkipLayers("transformer_block", (0,))).sample
    assert torch.isfinite(result).all()


def test_gradients_are_those_of_the_plain_backward_with_checkpointing(dit, dit_inputs):
    gradients = []
    for enable in (False, True):
        dit.zero_grad()
        if enable:
            dit.enable_gradient_checkpointing()
        dit(**dit_inputs, skip_layers=(None, SkipLayers("attention_skip", (1,)))).sample.square().mean().backward()
        gradients.append(dit.proj_in.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("skips", "message"),
    [
        (SkipLayers("residual", (0,)), "mode='residual' is not known"),
        (SkipLayers("attention_skip", (0, 2)), r"blocks=\[2\] are not there: the transformer has 0 to 1"),
        ((None, None, None), "3 entries for 2 samples"),
        ((), "0 entries for 2 samples"),
    ],
)
def test_what_cannot_be_left_out(skips, message):
    with pytest.raises(RequestError, match=message):
        plan_skips(skips, 2, 2, torch.device("cpu"))
