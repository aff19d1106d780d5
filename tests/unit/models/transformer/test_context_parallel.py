"""One clip's tokens spread over two processes give what one process gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os
import sys
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from vgen.models import VideoDiT

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.accelerator.device_count = lambda: 1  # the machinery divides by it
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
torch.manual_seed(0)
dit = VideoDiT(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, cross_attention_dim=20,
               num_layers=2, caption_channels=6).eval()
mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
tokens, text = torch.randn(2, 8, 4), torch.randn(2, 6, 6)
cases = [
    dict(timestep=torch.rand(2, 8) * 1000, video_coords=torch.rand(2, 3, 8)),
    dict(timestep=torch.tensor([3.0, 500.0]), num_frames=2, height=2, width=2),
]
with torch.no_grad():
    call = lambda case: dit(tokens, text, encoder_attention_mask=mask, return_dict=False, **case)[0]
    alone = [call(case) for case in cases]
    dit.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    widths = []
    dit.transformer_blocks[1].ff.register_forward_hook(lambda _, i, o: widths.append(i[0].shape[1]))
    spread = [call(case) for case in cases]
assert widths == [4, 4], widths
print(max((a - b).abs().max().item() for a, b in zip(alone, spread)))
sys.stdout.flush()
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # threads of gloo that outlive the interpreter abort it now and then, when all is done
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        printed, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        assert float(printed.split()[-1]) <= 1e-5
