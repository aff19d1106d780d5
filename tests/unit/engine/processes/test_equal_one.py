"""What several processes make together is what one makes: tokens in parts, attention by heads, pictures in stripes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from diffusers import FirstBlockCacheConfig
from vgen.engine.processes.sequence_parallel import SequenceParallel
from vgen.engine.processes.vae_parallel import VaeParallel
from vgen.engine.speed.fast_path import fast_path
from vgen.errors import RequestError
from vgen.models import CausalVideoVAE, VideoDiT
from vgen.types import SkipLayers

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.set_grad_enabled(False)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare(name, alone, together):
    print(name, float((alone - together).abs().max()), float(alone.std()), flush=True)


torch.manual_seed(0)
model = VideoDiT(in_channels=8, out_channels=8, num_attention_heads=3, attention_head_dim=8, cross_attention_dim=24,
                 num_layers=2, caption_channels=12).eval()
worked_on = []
model.transformer_blocks[1].register_forward_pre_hook(
    lambda block, args, kwargs: worked_on.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
)
for batch, tokens, by_token, grid in ((2, 15, False, None), (1, 16, True, None), (2, 1, True, None),
                                      (1, 15, False, (3, 5, 1))):
    call = dict(
        hidden_states=seeded(batch, tokens, 8), encoder_hidden_states=seeded(batch, 5, 12, seed=1),
        timestep=(torch.linspace(1, 900, tokens).expand(batch, -1) if by_token else torch.full((batch,), 500.0)),
        encoder_attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]][:batch]), return_dict=False,
    )
    if grid is None:
        call["video_coords"] = seeded(1, 3, tokens, seed=2).abs() * 9
    else:
        call.update(zip(("num_frames", "height", "width"), grid))
    if batch == 2 and tokens > 1:
        call["skip_layers"] = [None, SkipLayers("attention_values", (1,))]
    for hoisted in (False, True):
        found = []
        for spread in (False, True):
            parallel = SequenceParallel(model) if spread else None
            if hoisted:
                with fast_path(model):
                    model(**call)
                    found.append(model(**call)[0])
            else:
                found.append(model(**call)[0])
            if parallel is not None:
                parallel.detach()
        compare(f"tokens {tokens} hoisted {hoisted}", *found)
        parts = [tokens] if tokens < 2 else [tokens - tokens // 2, tokens // 2]
        assert worked_on[0] == tokens and worked_on[-1] == parts[min(rank, len(parts) - 1)]
        worked_on.clear()

def refused(what):
    try:
        what()
    except RequestError as error:
        return str(error)


parallel = SequenceParallel(model)
assert "split over processes already" in refused(lambda: SequenceParallel(model))
with torch.enable_grad():
    assert "no gradients" in refused(lambda: model(**call))
model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
assert "step cache" in refused(lambda: model(**call))
model.disable_cache()
parallel.detach()
one_head = VideoDiT(in_channels=8, out_channels=8, num_attention_heads=1, attention_head_dim=12, cross_attention_dim=12,
                    num_layers=1, caption_channels=12)
assert "2 processes cannot share the 1 heads" in refused(lambda: SequenceParallel(one_head))

common = dict(latent_channels=4, block_out_channels=(8, 8, 16), layers_per_block=(1, 1, 1, 1), patch_size=2,
              decoder_block_out_channels=(8, 16, 16), decoder_layers_per_block=(1, 1, 1, 1))
kinds = {
    "0.9.0": dict(down_block_types=("LTXVideoDownBlock3D",) * 3, spatio_temporal_scaling=(True, True, False),
                  decoder_spatio_temporal_scaling=(True, True, False), encoder_causal=True, decoder_causal=False),
    "0.9.1": dict(down_block_types=("LTXVideoDownBlock3D",) * 3, spatio_temporal_scaling=(True, True, False),
                  decoder_spatio_temporal_scaling=(True, True, False), decoder_causal=False,
                  decoder_inject_noise=(True, True, False, True), timestep_conditioning=True,
                  decoder_block_out_channels=(8, 16, 16), upsample_residual=(True, True, True),
                  upsample_factor=(2, 2, 1)),
    "0.9.5": dict(block_out_channels=(8, 16, 16, 16), down_block_types=("LTXVideo095DownBlock3D",) * 3,
                  downsample_type=("spatial", "temporal", "spatiotemporal"), spatio_temporal_scaling=(True,) * 3,
                  decoder_spatio_temporal_scaling=(True,) * 3, decoder_causal=True,
                  decoder_upsample_type=("spatial", "temporal", "spatiotemporal")),
}
for kind, config in kinds.items():
    torch.manual_seed(1)
    vae = CausalVideoVAE(**{**common, **config}).eval()
    for parameter in vae.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    seen = []
    first = vae.decoder.mid_block.resnets[0]
    first.register_forward_pre_hook(lambda block, args: seen.append(tuple(args[0].shape[3:])))
    frames, side, other = 1 + 2 * vae.strides.temporal, 5 * vae.strides.height, 3 * vae.strides.width
    ways = (
        (False, False, (2, 3, frames, side, other)),
        (True, False, (1, 3, frames, other, side)),
        (True, True, (1, 3, frames, side, side)),
        (False, False, (1, 3, 1, side, other)),
        (False, False, (1, 3, 1, vae.strides.height, vae.strides.width)),
    )
    for streamed, tiled, shape in ways:
        vae.disable_streaming()
        vae.disable_tiling()
        if streamed:
            vae.enable_streaming()
        if tiled:
            stride = vae.strides.height
            vae.enable_tiling(3 * stride, 3 * stride, 2 * stride, 2 * stride)
        found = []
        for spread in (False, True):
            parallel = VaeParallel(vae) if spread else None
            latents = vae.encode(seeded(*shape, seed=3)).latent_dist.mode()
            noise = torch.Generator().manual_seed(5)
            timestep = torch.tensor([0.05]) if vae.config.timestep_conditioning else None
            pixels = vae.decode(found[0][0] if found else latents, timestep, generator=noise).sample
            found.append((latents, pixels))
            if parallel is not None:
                assert parallel.room() > 0
                parallel.detach()
        small, half = max(shape[3:]) == vae.strides.height, len(seen) // 2
        assert (seen[:half] == seen[half:]) == small
        assert small or tiled or {max(size) for size in seen[:half]} == {5}
        assert small or tiled or {max(size) for size in seen[half:]} == {3}
        seen.clear()
        name = f"{kind} streamed {streamed} tiled {tiled} {shape}"
        compare("encode " + name, found[0][0], found[1][0])
        compare("decode " + name, found[0][1], found[1][1])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error:::vgen", "-c", PROGRAM, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    ended = [(process, *process.communicate(timeout=500)) for process in processes]
    for process, printed, errors in ended:
        assert process.returncode == 0, printed[-2000:] + "".join(errors for _, _, errors in ended)
        rows = printed.splitlines()
        print(printed)
        assert len(rows) == 8 + 30
        for row in rows:
            name, difference, deviation = row.rsplit(" ", 2)
            assert float(difference) <= 1e-5 and float(deviation) > 0.05, name
