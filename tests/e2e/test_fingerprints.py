"""What every command makes at a fixed seed, against stored values: a refactor changes none of them.

Only the command line, public names of `vgen`, `vgen.pipelines` and `vgen.models`, and recipes are used here, so that no
module that moves can break it. After a change that is meant: `python tests/e2e/test_fingerprints.py --write`.

Values are of 32-bit floats on one thread, and tolerances lie between what was measured of two kinds of change:

| change | largest difference of a clip's values (of 255 levels) | of latents |
|---|---|---|
| another number of threads, no oneDNN, or all linear layers off by a random 1e-6 | 0 to 0.03 | up to 7e-5 |
| guidance 3.1 in place of 3 | 0.05 to 29 | |
| one step more | 0.09 to 50 | |
| another seed | 1.1 to 97 | |
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import typer
from PIL import Image

import vgen
import vgen.cli
import vgen.models
import vgen.pipelines

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 0.04
LATENTS_TOLERANCE = 2e-4

SPRITES = ["--seed", 5, "--steps", 3, "--num-frames", 9]
UNDRAFTED = [*SPRITES, "--draft-steps", 0]
LTX = ["--model", "LTX", "--seed", 5, "--steps", 3, "--height", 64, "--width", 64, "--num-frames", 9,
       "--frame-rate", 8]  # fmt: skip
GREEN = "a green square moves up"
CLIPS: dict[str, list[Any]] = {
    "generate": ["generate", "a red circle moves left", *SPRITES],
    "generate, 0 draft steps": ["generate", GREEN, *UNDRAFTED],
    "generate, 4 steps": ["generate", GREEN, *UNDRAFTED, "--steps", 4],
    "generate, negative prompt": ["generate", GREEN, *UNDRAFTED, "--negative-prompt", "a red circle"],
    "generate, guidance off": ["generate", GREEN, *UNDRAFTED, "--guidance-scale", 1],
    "generate, guidance rescaled": ["generate", GREEN, *UNDRAFTED, "--guidance-rescale", 0.7],
    "generate, guidance interval": ["generate", GREEN, *UNDRAFTED, "--guidance-interval", "0.5,0.99"],
    "generate, stg": ["generate", GREEN, *UNDRAFTED, "--stg-scale", 1, "--stg-blocks", "1,3"],
    "generate, stg skips": ["generate", GREEN, *UNDRAFTED, "--stg-scale", 1, "--stg-blocks", "2", "--stg-mode",
                            "attention_skip"],
    "generate, sigmas": ["generate", GREEN, *UNDRAFTED[:2], *UNDRAFTED[4:], "--sigmas", "1,0.8,0.3"],
    "generate, step cache": ["generate", GREEN, *UNDRAFTED, "--steps", 6, "--step-cache", "taylorseer:2"],
    "generate, enlarged": ["generate", GREEN, *UNDRAFTED, "--scale", 2],
    "generate, upscale": ["generate", GREEN, *UNDRAFTED, "--upscale", "UPSAMPLER", "--allow-untrained"],
    "animate": ["animate", "first.png", "it moves right", *SPRITES],
    "animate, not kept": ["animate", "first.png", "it moves right", *SPRITES, "--no-keep-known-pixels"],
    "animate, contain": ["animate", "wide.png", "it moves right", *SPRITES, "--fit", "contain"],
    "interpolate": ["interpolate", "first.png", "last.png", "it moves right", *SPRITES],
    "interpolate, keyframe": ["interpolate", "first.png", "last.png", *SPRITES, "--keyframe", "wide.png@4"],
    "predict": ["predict", "clip", "it moves right", *SPRITES, "--keep-frames", 5],
    "predict, backward": ["predict", "clip", "it moves right", *SPRITES, "--keep-frames", 5, "--backward"],
    "loop": ["loop", "a blue cross rotates", *SPRITES],
    "loop, image": ["loop", "it rotates", "--image", "first.png", *SPRITES],
    "inpaint": ["inpaint", "clip", "a yellow triangle", "--mask", "mask.png", *SPRITES],
    "outpaint": ["outpaint", "narrow", "a yellow triangle", "--width", 64, "--height", 64, *SPRITES],
    "restyle": ["restyle", "clip", "a red circle moves right", "--strength", 0.6, "--steps", 5, "--seed", 5],
    "extend": ["extend", "clip", "it moves right", "--seconds", 1, *SPRITES],
    "extend, reference": ["extend", "clip", "it moves right", "--seconds", 1, *SPRITES, "--reference", "first"],
    "story": ["story", "story.toml", *SPRITES],
    "ltx generate": ["generate", "a dog", *LTX],
    "ltx generate, stg": ["generate", "a dog", *LTX, "--guidance-scale", 3, "--stg-scale", 1, "--stg-blocks", "1"],
    "ltx animate": ["animate", "first.png", "a dog", *LTX],
    "ltx animate, softened": ["animate", "first.png", "a dog", *LTX, "--input-crf", 40],
    "ltx inpaint": ["inpaint", "clip", "a dog", "--mask", "mask.png", *LTX],
    "ltx extend": ["extend", "clip", "a dog", "--seconds", 1, *LTX, "--num-frames", 17],
}  # fmt: skip
STORY = """
[[segment]]
prompt = "a red circle moves right"
num_frames = 9
[[segment]]
prompt = "a red circle moves left"
num_frames = 8
cross_fade = 0.5
"""
CALLS: dict[str, Callable[[Any, Any], tuple[type, dict[str, Any]]]] = {
    "text": lambda frames, vgen: (vgen.TextToVideoPipeline, {}),
    "text, drafted": lambda frames, vgen: (vgen.TextToVideoPipeline, {"draft_steps": 2}),
    "text, batch": lambda frames, vgen: (vgen.TextToVideoPipeline, {"prompt": [GREEN, "a red circle"]}),
    "image": lambda frames, vgen: (vgen.ImageToVideoPipeline, {"image": frames[0]}),
    "two images": lambda frames, vgen: (vgen.InterpolationPipeline, {"first": frames[0], "last": frames[8]}),
    "conditions": lambda frames, vgen: (
        vgen.MaskedPredictionPipeline,
        {"conditions": [vgen.VideoCondition(frames[:5], strength=0.8), vgen.VideoCondition(frames[8], 8)]},
    ),
    "video": lambda frames, vgen: (vgen.VideoToVideoPipeline, {"video": frames[:9], "denoise_strength": 0.7}),
}


def draw_clip(width: int = 64) -> np.ndarray:
    """17 frames of a disc that moves right over a gradient; uint8 [17, 64, width, 3]."""
    rows, columns = np.mgrid[:64, :width]
    clip = np.stack([np.stack([rows + 20, columns // 2 + 30, np.full_like(rows, 60)], -1)] * 17)
    for index, frame in enumerate(clip):
        frame[(rows - 32) ** 2 + (columns - 12 - 2 * index) ** 2 < 100] = (220, 60, 40)
    return clip.astype(np.uint8)


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """A folder of PNG pictures."""
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:04d}.png")


def read_frames(folder: Path) -> np.ndarray:
    """uint8 [F, H, W, 3] of a folder of PNG pictures."""
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in sorted(folder.glob("*.png"))])


def signature(frames: np.ndarray) -> dict[str, Any]:
    """Of each frame the means of 4 x 4 blocks, of its colours, and of the differences of neighbours in a row."""
    values = frames.astype(np.float64)
    blocks = values.reshape(len(values), 4, values.shape[1] // 4, 4, values.shape[2] // 4, 3).mean((2, 4, 5))
    detail = np.abs(np.diff(values, axis=2)).mean((1, 2, 3))
    rows = np.concatenate([blocks.reshape(len(values), 16), values.mean((1, 2)), detail[:, None]], 1)
    return {"shape": list(frames.shape), "values": np.round(rows, 2).tolist()}


def described_request(text: str) -> dict[str, Any]:
    """What `vgen info --json` prints, without what the machine and its libraries decide."""
    request = json.loads(text)
    request["versions"] = sorted(request["versions"])
    request["contents"] = sorted(request.get("contents", ()))
    if Path(request["model"]).is_absolute():
        request |= {"model": Path(request["model"]).name, "model_hash": len(request["model_hash"])}
    return request


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Weights by name, whatever order a model makes them in."""
    for name, value in sorted(model.state_dict().items()):
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    return model


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that CLIPS names."""
    folder = tmp_path_factory.mktemp("material")
    clip = draw_clip()
    write_frames(folder / "clip", clip)
    write_frames(folder / "narrow", clip[:, :, 8:40])
    for name, frame in {"first": clip[0], "last": clip[8], "wide": draw_clip(96)[4]}.items():
        Image.fromarray(frame).save(folder / f"{name}.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 24:56] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "prompts.txt").write_text("a white circle stays still\na purple square grows\n")
    (folder / "story.toml").write_text(STORY)
    upsampler = vgen.LatentUpsampler(in_channels=16, mid_channels=32, num_blocks_per_stage=1)
    fill(upsampler).save_pretrained(folder / "UPSAMPLER")
    return folder


@pytest.fixture
def make(run_cli: Any, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs a command of CLIPS with the files of `material`; returns the folder that it has written."""
    monkeypatch.chdir(material)

    def run(*words: Any) -> Path:
        done = run_cli(*words, "--device", "cpu", "-o", f"{tmp_path}/out/")
        assert done.code == 0, f"{words}: {done.err}"
        return tmp_path / "out"

    return run


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip(name: str, stored: Any, ltx_folders: dict[str, Path], make: Callable[..., Path], run_cli: Any) -> None:
    folder = make(*(ltx_folders["0.9.5"] if word == "LTX" else word for word in CLIPS[name]))
    stored.check(f"clip: {name}", signature(read_frames(folder)), TOLERANCE)
    stored.check(f"info: {name}", described_request(run_cli("info", folder, "--json").out))


def test_clips_of_a_file_of_prompts(stored: Any, make: Callable[..., Path]) -> None:
    """They are H.264, in which 1e-6 in the frames can become half a level; another seed is 35 of them."""
    folder = make("generate", "--prompts", "prompts.txt", *SPRITES)
    for file in sorted(folder.iterdir()):
        frames = np.stack(list(iio.imiter(file, plugin="pyav")))
        stored.check(f"prompts: {file.name}", signature(frames), 1.0)


@pytest.fixture(scope="module")
def sprites() -> Any:
    pipe = vgen.TextToVideoPipeline.from_pretrained("sprites")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", CALLS)
def test_latents_in_python(name: str, stored: Any, sprites: Any) -> None:
    kind, arguments = CALLS[name](draw_clip(), vgen)
    pipe = sprites if kind is type(sprites) else kind.from_pipe(sprites)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": GREEN, "num_inference_steps": 3, "output_type": "latent", "draft_steps": 0, **arguments}
    if "video" not in call:
        call["num_frames"] = 9
    latents = pipe(**call, generator=torch.Generator().manual_seed(2)).frames.double()
    every = latents.flatten()[:: latents.numel() // 64]
    stored.check(f"latents: {name}", {"shape": list(latents.shape), "values": every.tolist()}, LATENTS_TOLERANCE)


def described(command: Any) -> dict[str, Any]:
    """Names of the arguments, options and subcommands of a command."""
    options = [name for each in command.params for name in (*each.opts, *each.secondary_opts) if name.startswith("-")]
    arguments = [each.name for each in command.params if each.param_type_name == "argument"]
    return {"arguments": arguments, "options": sorted(options), "commands": sorted(visible(command))}


def visible(command: Any) -> dict[str, Any]:
    """Subcommands by name."""
    return {name: each for name, each in getattr(command, "commands", {}).items() if not each.hidden}


def walk(command: Any, name: str = "vgen") -> Iterator[tuple[str, Any]]:
    """A command and all below it, with their names as they are typed."""
    yield name, command
    for below, each in visible(command).items():
        yield from walk(each, f"{name} {below}")


def test_commands_and_their_options(stored: Any, run_cli: Any) -> None:
    root = typer.main.get_command(vgen.cli.app)
    for name, command in walk(root):
        stored.check(f"command: {name}", described(command))
    shown = run_cli("--help").out
    assert [name for name in visible(root) if not re.search(rf"^\W*{name}\b", shown, re.MULTILINE)] == []


@pytest.mark.parametrize("module", [vgen, vgen.pipelines, vgen.models], ids=lambda module: module.__name__)
def test_public_names(module: Any, stored: Any) -> None:
    """With what a pipeline's call takes."""
    names = {name: [] for name in sorted(module.__all__)}
    for name in names:
        value = getattr(module, name)
        if name.endswith("Pipeline"):
            names[name] = sorted(inspect.signature(value.__call__).parameters)
    stored.check(f"public: {module.__name__}", names)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python tests/e2e/test_fingerprints.py --write replaces fingerprints.json")
    os.environ["VGEN_WRITE_FINGERPRINTS"] = "1"
    training = Path(__file__).with_name("test_fingerprints_training.py")
    sys.exit(pytest.main([__file__, str(training), "-q", "-n", "0", "-p", "no:cacheprovider"]))
