"""The VAE's second stage: the reconstruction GAN, the decoder that takes a timestep, LPIPS from local weights."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vgen.errors import CheckpointError, VgenError
from vgen.models import CausalVideoVAE
from vgen.training.checkpoint.store import CheckpointStore
from vgen.training.losses.lpips import Lpips
from vgen.training.losses.pixels import difference_psnr, seam_psnr
from vgen.training.objectives.vae.discriminator import PairDiscriminator, gan_losses
from vgen.training.objectives.vae.timestep_decoder import noise_latents, with_timestep
from vgen.training.run import run_recipe


def _clip(seed: int, frames: int = 5, side: int = 16) -> Tensor:
    return torch.rand(2, 3, frames, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 5])
def test_the_discriminator_turns_its_sign_when_the_clips_are_swapped(frames: int) -> None:
    discriminator = PairDiscriminator(8, 2)
    first, second = _clip(1, frames), _clip(2, frames)
    told = discriminator(first, second)
    assert told.shape == (2, 1, frames, 4, 4)
    assert float(told.detach().abs().max()) > 1e-3
    torch.testing.assert_close(discriminator(second, first), -told)
    assert float(discriminator(first, first).detach().abs().max()) < 1e-6


def test_each_part_of_the_gan_gets_its_own_gradients_only() -> None:
    torch.manual_seed(0)
    decoder, discriminator = nn.Conv3d(3, 3, 1), PairDiscriminator(8, 2)
    original = _clip(1)

    def gradients(active: bool) -> tuple[Tensor | None, Tensor, float, Tensor]:
        decoder.zero_grad()
        discriminator.zero_grad()
        restored = decoder(original)
        reconstruction = (restored - original).abs().mean()
        gan = gan_losses(discriminator, original, restored, reconstruction, decoder.weight, 0.05, active)
        gan.total.backward()
        first = discriminator.layers[0]
        assert isinstance(first, nn.Conv3d)
        alone = torch.autograd.grad((decoder(original) - original).abs().mean(), decoder.weight)[0]
        factor = float(gan.logs.get("gan/factor", torch.zeros(())))
        return decoder.weight.grad, first.weight.grad, factor, alone

    waiting, told, _, _ = gradients(active=False)
    assert waiting is None and float(told.abs().max()) > 0
    working, told_again, factor, alone = gradients(active=True)
    assert working is not None
    torch.testing.assert_close(told, told_again)  # the decoder's wish does not reach the discriminator
    assert float(working.norm()) == pytest.approx(0.05 * float(alone.norm()), rel=1e-3)
    assert factor > 0


def test_a_discriminator_learns_to_tell_blur_from_sharp() -> None:
    discriminator = PairDiscriminator(8, 2)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    for step in range(40):
        sharp = _clip(step)
        blurred = functional.avg_pool3d(sharp, 3, stride=1, padding=1)
        told = discriminator(sharp, blurred)
        optimizer.zero_grad()
        functional.softplus(-told).mean().backward()
        optimizer.step()
    sharp = _clip(1000)
    told = discriminator(sharp, functional.avg_pool3d(sharp, 3, stride=1, padding=1))
    assert float((told > 0).float().mean()) > 0.95


def test_a_timestep_is_added_to_a_decoder_without_changing_what_it_decodes(tiny_vae: CausalVideoVAE) -> None:
    extended = with_timestep(tiny_vae)
    latents = torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(3))
    plain = tiny_vae.decode(latents).sample
    for timestep in (0.0, 0.05, 0.2):
        torch.testing.assert_close(extended.decode(latents, torch.full((2,), timestep)).sample, plain)
    video = _clip(4)
    assert torch.equal(extended.encode(video).latent_dist.mean, tiny_vae.encode(video).latent_dist.mean)
    assert torch.equal(extended.latents_std, tiny_vae.latents_std)
    assert with_timestep(extended) is extended
    decoded = extended.decode(latents, torch.full((2,), 0.1)).sample.square().mean()
    extended.requires_grad_(True)
    decoded = extended.decode(latents, torch.full((2,), 0.1)).sample.square().mean()
    decoded.backward()
    table = extended.decoder.scale_shift_table
    assert float(table.grad.abs().max()) > 0  # it starts at zero, and can leave it


def test_latents_are_noised_as_a_pipeline_does_it(tiny_vae: CausalVideoVAE) -> None:
    latents = torch.randn(2, 4, 2, 2, 2)
    noise = torch.randn_like(latents)
    noised = noise_latents(tiny_vae, latents, noise, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(noised[0], latents[0])
    torch.testing.assert_close(tiny_vae.normalize(noised)[1], noise[1])


def test_seams_lie_where_a_latent_ends() -> None:
    clip = torch.zeros(1, 9, 4, 4, 3, dtype=torch.uint8)
    inside, seam = clip.clone(), clip.clone()
    inside[:, 2:5] = 100  # changes from frame 1 to 2, and from 4 to 5, which is a seam
    seam[:, 1:] = 100  # changes from frame 0 to 1 only: a seam
    assert difference_psnr(clip, seam) > seam_psnr(clip, seam, 4)
    inside[:, 5:] = 100
    assert seam_psnr(clip, inside, 4) > 100 > difference_psnr(clip, inside)


def _recipe(folder: Path, tiny: dict[str, Any], **objective: Any) -> Path:
    told = {
        "name": "sharpen",
        "num_threads": 1,
        "device": "cpu",
        "data": {"tier": 1, "height": 16, "width": 16, "workers": 0},
        "objective": {
            "kind": "vae", "model": tiny, "validation_clips": 2, "validation_frames": 5, **objective
        },
        "stages": [{"steps": 4, "frames": {1: 0.3, 5: 0.7}, "batch": {1: 2, 5: 2}}],
        "every": {"log": 1, "checkpoint": 2, "validate": 4},
        "checkpoint": {"keep": 3},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.fixture
def trained(tiny_vae: CausalVideoVAE, tmp_path: Path) -> Path:
    folder = tmp_path / "trained"
    tiny_vae.half().save_pretrained(folder)
    return folder


GAN = {"width": 8, "levels": 2, "start_step": 1, "lr": 1e-3}


def test_resuming_with_a_discriminator_equals_not_stopping(
    trained: Path, tiny_vae_config: dict[str, Any], tmp_path: Path
) -> None:
    sharpening = {"init": str(trained), "train": "decoder", "gan": GAN, "denoising": {}}
    path = _recipe(tmp_path, tiny_vae_config, **sharpening)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_recipe(path, [f"output_dir={whole}"])
    shorter = "stages=[{steps: 2, frames: {1: 0.3, 5: 0.7}, batch: {1: 2, 5: 2}}]"
    constant = "schedule.name=constant"
    run_recipe(path, [f"output_dir={tmp_path / 'even'}", constant])
    run_recipe(path, [f"output_dir={cut}", constant, shorter, "every.validate=0"])
    run_recipe(path, [f"output_dir={cut}", constant])
    one, two, start = (
        CheckpointStore(folder / "checkpoints").load(folder / "checkpoints" / f"step-{step:08d}")
        for folder, step in ((tmp_path / "even", 4), (cut, 4), (cut, 2))
    )
    told_apart = [name for name in one.model if name.startswith("discriminator.")]
    assert told_apart and any(not torch.equal(one.model[name], start.model[name]) for name in told_apart)
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)
    assert all(torch.equal(one.ema[name], two.ema[name]) for name in one.ema)
    members = [state.optimizer["members"] for state in (one, two)]
    assert len(members[0]) == 2 and len(members[0][1]["state"]) == len(told_apart)
    for first, second in zip(*members, strict=True):
        for key, value in first["state"].items():
            assert torch.equal(value["exp_avg"], second["state"][key]["exp_avg"])
    logged = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    names = {name for entry in logged for name in entry}
    assert {"gan/decoder", "gan/discriminator", "gan/accuracy", "gan/factor"} <= names
    assert {
        "validation/seam_psnr", "validation/difference_psnr", "validation/ssim", "validation/psnr_from_0.05"
    } <= names  # fmt: skip


def test_sharpening_leaves_encoder_and_statistics_bit_for_bit(
    trained: Path, tiny_vae_config: dict[str, Any], tmp_path: Path
) -> None:
    path = _recipe(tmp_path, tiny_vae_config, init=str(trained), train="decoder", gan=GAN)
    run = run_recipe(path, [f"output_dir={tmp_path / 'run'}"])
    file = "diffusion_pytorch_model.safetensors"
    before, after = load_file(trained / file), load_file(run / "export" / file)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_a_gan_needs_an_encoder_that_is_done(tiny_vae_config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(VgenError, match="gan is for a decoder trained alone"):
        run_recipe(_recipe(tmp_path, tiny_vae_config, gan=GAN), [f"output_dir={tmp_path / 'run'}"])


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of the real ones."""
    folder, source = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    channels, backbone, heads = 3, {}, {}
    for place in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        width = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}.get(place, 512)
        scale = (9 * channels) ** -0.5
        backbone[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3, generator=source) * scale
        backbone[f"features.{place}.bias"] = torch.randn(width, generator=source) * 0.1
        channels = width
    for stage, width in enumerate((64, 128, 256, 512, 512)):
        heads[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=source)
    save_file(backbone, folder / "vgg16.safetensors")
    save_file(heads, folder / "lpips_vgg.safetensors")
    return folder


def test_lpips_reads_local_weights_and_is_a_distance(lpips_folder: Path) -> None:
    lpips = Lpips(lpips_folder)
    first, second = _clip(1)[:, :, 0], _clip(2)[:, :, 0]
    assert float(lpips(first, first).abs().max()) == 0.0
    assert (lpips(first, second) > 0).all()
    torch.testing.assert_close(lpips(first, second), lpips(second, first))
    near = lpips(first, first + 0.01 * second)
    assert (near < lpips(first, second)).all()
    # The first stage written out: the formula, not the module.
    weights = load_file(lpips_folder / "vgg16.safetensors")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def stage(picture: Tensor) -> Tensor:
        hidden = (picture - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)
        for place in (0, 2):
            hidden = functional.conv2d(
                hidden, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1
            ).relu()
        return hidden / hidden.norm(dim=1, keepdim=True)

    head = load_file(lpips_folder / "lpips_vgg.safetensors")["lin0.model.1.weight"].flatten()
    expected = ((stage(first) - stage(second)).square() * head.view(1, -1, 1, 1)).sum(1).mean(dim=(1, 2))
    only_first = Lpips(lpips_folder)
    for later in only_first.heads[1:]:
        later.weight.zero_()
    torch.testing.assert_close(only_first(first, second), expected, rtol=1e-4, atol=1e-6)


def test_lpips_is_refused_without_its_weights(lpips_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vgg16\.safetensors is not there.*nothing is downloaded"):
        Lpips(tmp_path)
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg16.safetensors")
    save_file({"lin0.model.1.weight": torch.zeros(1)}, tmp_path / "lpips_vgg.safetensors")
    with pytest.raises(CheckpointError, match=r"features\.0\.weight is \(1,\)"):
        Lpips(tmp_path)


def test_lpips_opens_no_pickle_and_tells_how_to_convert(lpips_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    shutil.copy(lpips_folder / "vgg16.safetensors", folder)
    heads = load_file(lpips_folder / "lpips_vgg.safetensors")
    torch.save(heads, folder / "lpips_vgg.pth")
    with pytest.raises(CheckpointError, match=r"lpips_vgg\.pth is a pickle.*Convert it once: python -c") as refused:
        Lpips(folder)
    told = shlex.split(str(refused.value).partition("Convert it once: ")[2])
    subprocess.run([sys.executable, *told[1:]], check=True, timeout=120)
    for name, value in load_file(folder / "lpips_vgg.safetensors").items():
        assert torch.equal(value, heads[name])
    Lpips(folder)


def test_lpips_can_be_a_loss(
    lpips_folder: Path, trained: Path, tiny_vae_config: dict[str, Any], tmp_path: Path
) -> None:
    told = {"init": str(trained), "train": "decoder", "lpips": {"folder": str(lpips_folder)}}
    stages = "stages=[{steps: 1, frames: {5: 1.0}, batch: {5: 1}}]"
    run = run_recipe(
        _recipe(tmp_path, tiny_vae_config, **told), [f"output_dir={tmp_path / 'run'}", stages, "every.validate=0"]
    )
    assert any("lpips" in line for line in (run / "log.jsonl").read_text().splitlines())
    assert not any("stages" in name for name in CheckpointStore(run / "checkpoints").load(
        run / "checkpoints" / "step-00000001").model)  # fmt: skip
