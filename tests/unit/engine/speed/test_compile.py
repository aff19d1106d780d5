"""Compiled blocks give what plain ones give, one program serves all blocks and sizes, and a later process finds it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from vgen.engine.speed.compile import compile_blocks, is_compiled, keep_compiled, release_blocks
from vgen.engine.speed.fast_path import fast_path
from vgen.models import VideoDiT

PROGRAM = """
import torch
from torch._dynamo.utils import counters
from tests_of_compiling import call, loop, make
from vgen.engine.speed.compile import compile_blocks

with torch.no_grad():
    dit = make()
    plain = [loop(dit, size) for size in (8, 20)]
    compile_blocks(dit)
    compiled = [loop(dit, size) for size in (8, 20)]
worst = max((a - b).abs().max().item() for a, b in zip(plain, compiled))
print(worst, counters["stats"]["unique_graphs"], counters["aot_autograd"]["autograd_cache_hit"])
"""


def make() -> VideoDiT:
    torch.manual_seed(0)
    dit = VideoDiT(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=3,
        caption_channels=6,
    ).eval()
    for parameter in dit.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return dit


def call(tokens, lengths=(6, 2)):
    noise = torch.Generator().manual_seed(tokens)
    return {
        "hidden_states": torch.randn(2, tokens, 4, generator=noise),
        "encoder_hidden_states": torch.randn(2, 6, 6, generator=noise),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_attention_mask": torch.arange(6)[None] < torch.tensor(lengths)[:, None],
        "video_coords": torch.rand(1, 3, tokens, generator=noise),
        "return_dict": False,
    }


def loop(dit, tokens, **changes):
    with fast_path(dit) as path:
        path.expect_timesteps(torch.tensor([300.0, 500.0]))
        inputs = call(tokens, **changes)
        dit(**inputs)
        return dit(**inputs)[0]


@torch.no_grad()
def test_one_program_serves_all_blocks_and_sizes(monkeypatch, tmp_path):
    from torch._dynamo.utils import counters

    dit = make()
    seen = []
    dit.transformer_blocks[1].attn2.to_k.register_forward_pre_hook(lambda *_: seen.append(1))
    plain = [loop(dit, size) for size in (8, 20, 33)]
    torch._dynamo.reset()
    counters.clear()
    seen.clear()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiling = partialmethod(VideoDiT.compile_repeated_blocks, backend="eager")
    monkeypatch.setattr(VideoDiT, "compile_repeated_blocks", compiling)
    compile_blocks(dit)
    for size, expected in zip((8, 20, 33), plain, strict=True):
        torch.testing.assert_close(loop(dit, size), expected, atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == 1
    assert len(seen) == 3 * 2  # keys of two lengths of text, once a loop
    release_blocks(dit)
    assert not is_compiled(dit)
    assert torch.equal(loop(dit, 8), plain[0])


@pytest.mark.slow
def test_compiled_equals_plain_and_is_found_again(tmp_path):
    (tmp_path / "tests_of_compiling.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    environment = {**os.environ, "VGEN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.getcwd(), environment.get("PYTHONPATH", "")])
    for found_again in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=550
        )
        assert done.returncode == 0, done.stderr[-2000:]
        worst, graphs, hits = done.stdout.split()[-3:]
        assert float(worst) <= 1e-5
        assert int(graphs) == 1
        assert (int(hits) > 0) == found_again
    assert any(path.is_file() for path in (tmp_path / "cache" / "compile").rglob("*"))


def test_compiling_twice_is_compiling_once(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    dit = make()
    compile_blocks(dit)
    before = [block._compiled_call_impl for block in dit.transformer_blocks]
    compile_blocks(dit)
    assert is_compiled(dit)
    assert [block._compiled_call_impl for block in dit.transformer_blocks] == before


def test_where_compiled_programs_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("VGEN_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")  # so that it is undone in the end
    assert keep_compiled() == "elsewhere"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # by torch, not by the user
    (tmp_path / "compile").mkdir()
    (tmp_path / "compile").chmod(0o777)  # anybody could put a program there
    assert keep_compiled() is None
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == default_cache_dir()
    (tmp_path / "compile").chmod(0o700)
    assert keep_compiled() == str(tmp_path / "compile") == os.environ["TORCHINDUCTOR_CACHE_DIR"]
