"""Commands that torchrun starts several times: the clip of one process, one voice, and a failure that ends all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgen.io.media.video import read_metadata, read_video

SCRIPT = Path(__file__).with_name("commands.py")
STORY = """
num_inference_steps = 2
[[segment]]
prompt = "a red circle"
num_frames = 9
[[segment]]
prompt = "a blue square"
num_frames = 8
"""


def torchrun(count: int, *jobs: list[str]) -> subprocess.CompletedProcess[str]:
    words = [str(word) for job in jobs for word in ("+", *job)][1:]
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone", str(SCRIPT),
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=550,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def frames(folder: Path) -> np.ndarray:
    return read_video(str(folder)).frames.astype(int)


@pytest.mark.slow
def test_two_processes_make_the_clips_of_one(run_cli, tmp_path):
    """Tokens in parts; branches, a given picture and a seed that one draws; windows; and a process that fails."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "p.png")
    (tmp_path / "story.toml").write_text(STORY)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    small = ["--num-frames", "9", "--steps", "2"]
    jobs = {
        "tokens": ["generate", "a red circle moves up", *small, "--seed", "3", "--parallel", "sequence"],
        "branches": ["animate", str(tmp_path / "p.png"), "a red circle", *small],
        "lines": ["generate", "--prompts", str(tmp_path / "prompts.txt"), *small, "--seed", "5"],
        "story": ["story", str(tmp_path / "story.toml"), "--num-frames", "9", "--seed", "4"],
    }
    done = torchrun(
        2,
        *([*job, "-o", f"{tmp_path / name}/"] for name, job in jobs.items()),
        ["BREAK", *jobs["tokens"], "-o", f"{tmp_path / 'broken'}/"],
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    complaints = [line for line in done.stderr.splitlines() if line.startswith("vgen: ")]
    assert len(complaints) == 1 and "did not fit in the memory of cpu" in complaints[0], said
    assert not (tmp_path / "broken").exists() and not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))
    assert done.stdout.count("made in") == 5, said

    seed = read_metadata(tmp_path / "branches")["seed"]
    jobs["branches"] += ["--seed", str(seed)]
    jobs["tokens"] = jobs["tokens"][:-2]
    for name, job in jobs.items():
        alone = run_cli(*job, "-o", f"{tmp_path / name}-alone/")
        assert alone.code == 0, alone.err
        for clip in sorted((tmp_path / name).glob("*.mp4")) or [tmp_path / name]:
            other = tmp_path / f"{name}-alone" / (clip.name if clip.suffix else "")
            one, two = frames(other), frames(clip)
            assert one.shape == two.shape and one.std() > 5
            off = np.abs(one - two)
            assert off.mean() < 1 if clip.suffix else off.max() <= 1, name


@pytest.mark.slow
def test_four_processes_are_a_grid_of_branches_and_tokens(run_cli, tmp_path):
    job = ["generate", "a red circle moves up", "--num-frames", "9", "--steps", "2", "--seed", "3"]
    done = torchrun(4, [*job, "-o", f"{tmp_path / 'four'}/"])
    assert done.returncode == 0 and done.stdout.count("made in") == 1, done.stdout + done.stderr
    assert run_cli(*job, "-o", f"{tmp_path / 'one'}/").code == 0
    assert np.abs(frames(tmp_path / "one") - frames(tmp_path / "four")).max() <= 1
