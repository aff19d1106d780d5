"""The models that go by a name: what is known of them, where they are looked for, what is said if they are absent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vgen.errors import CheckpointError, RequestError
from vgen.hub.catalog import CATALOG, REPOSITORY, entry_named, entry_of_file, generic_defaults
from vgen.hub.find import find_entry, find_text_encoder, model_defaults, resolve_model
from vgen.request.resolve import preset_settings
from vgen.request.steps import settle_steps
from vgen.request.two_pass_presets import preset_named

NAME = "ltx-2b-0.9.8-distilled"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """An empty cache of the hub; makes the snapshot of a repository in it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))

    def snapshot(repository: str, revision: str = "abc123") -> Path:
        folder = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
        (folder / "snapshots" / revision).mkdir(parents=True)
        return folder / "snapshots" / revision

    return snapshot


def _write(file: Path) -> Path:
    tensors = {
        "model.diffusion_model.patchify_proj.weight": np.zeros((64, 8), np.float32),
        "vae.encoder.conv_in.conv.weight": np.zeros((8, 48, 3, 3, 3), np.float32),
    }
    save_file(tensors, file)
    return file


def test_the_makers_own_guidance_is_a_preset() -> None:
    """Values of Lightricks' configurations; a rescaling_scale of 1 there is none, 0 here."""
    for name in ("ltx-2b-0.9.0", "ltx-2b-0.9.1", "ltx-2b-0.9.5", "ltx-2b-0.9.6-dev"):
        found = preset_settings("original", CATALOG[name].defaults)
        assert found == {
            "num_inference_steps": 40, "guidance_scale": 3.0, "guidance_rescale": 0.7, "stg_scale": 1.0,
            "stg_blocks": (19,), "stg_mode": "attention_values",
        }  # fmt: skip
        assert "stg_scale" not in CATALOG[name].defaults  # the default is guidance alone
    for name in ("ltx-13b-0.9.7-dev", "ltx-13b-0.9.8-dev"):
        found = preset_settings("original", CATALOG[name].defaults)
        first = preset_named("dev").first_pass
        lists = ("guidance_sigmas", "guidance_scale", "guidance_rescale", "stg_scale")
        assert {len(found[field]) for field in (*lists, "stg_blocks")} == {7}
        assert all(list(found[field]) == first[field] for field in lists)
        assert [list(blocks) for blocks in found["stg_blocks"]] == first["stg_blocks"]
        assert found["cfg_star"] is first["cfg_star"] is True
    for name, entry in CATALOG.items():
        if "distilled" in name:
            assert preset_settings("original", entry.defaults) == {}
    assert preset_settings(None, {}) == {} == preset_settings("original", generic_defaults("0.9.5", [1.0, 0.5]))
    assert preset_settings("original", generic_defaults("0.9.0"))["stg_blocks"] == (19,)
    with pytest.raises(RequestError, match=r"preset='orignal' is not one of this model: it has original\."):
        preset_settings("orignal", CATALOG["ltx-2b-0.9.5"].defaults)
    with pytest.raises(RequestError, match="it has none: leave preset out"):
        preset_settings("original", {"num_inference_steps": 3})


def test_every_version_is_there() -> None:
    have = {(entry.size, entry.version) for entry in CATALOG.values()}
    assert have == {("2b", f"0.9.{n}") for n in (0, 1, 5, 6, 8)} | {("13b", "0.9.7"), ("13b", "0.9.8")}
    assert {entry.file for entry in CATALOG.values() if not entry.fp8} == {
        "ltx-video-2b-v0.9.safetensors", "ltx-video-2b-v0.9.1.safetensors", "ltx-video-2b-v0.9.5.safetensors",
        "ltxv-2b-0.9.6-dev-04-25.safetensors", "ltxv-2b-0.9.6-distilled-04-25.safetensors",
        "ltxv-13b-0.9.7-dev.safetensors", "ltxv-13b-0.9.7-distilled.safetensors", "ltxv-13b-0.9.8-dev.safetensors",
        "ltxv-13b-0.9.8-distilled.safetensors", "ltxv-2b-0.9.8-distilled.safetensors",
    }  # fmt: skip
    for entry in CATALOG.values():
        assert entry.defaults["max_sequence_length"] == (128 if entry.version in ("0.9.0", "0.9.1") else 256)
        assert entry.memory_bytes > entry.weight_bytes > 4e9
        distilled = "distilled" in entry.name
        assert entry.defaults["guidance_scale"] == (1.0 if distilled else 5.0 if entry.size == "13b" else 3.0)
        assert settle_steps({}, entry.defaults).num_inference_steps == (
            8 if distilled else entry.defaults["num_inference_steps"]
        )
        assert entry_of_file(Path("/x") / entry.file) is entry
    assert round(CATALOG[NAME].file_bytes / 1e8) == 63
    assert round(CATALOG["ltx-2b-0.9.0"].file_bytes / 1e8) == 94


def test_unknown_versions_name_the_known() -> None:
    with pytest.raises(
        CheckpointError, match=r"version='ltx-2b-0\.9\.2' is not known: did you mean .*Known are ltx-2b"
    ) as e:
        entry_named("ltx-2b-0.9.2")
    assert all(name in str(e.value) for name in CATALOG)
    with pytest.raises(CheckpointError, match=r"did you mean 'ltx-2b-0\.9\.8-distilled'"):
        resolve_model("ltx-2b-0.9.9-distilled")


def test_defaults_of_unnamed_files() -> None:
    assert generic_defaults("0.9.1")["max_sequence_length"] == 128
    assert "decode_timestep" not in generic_defaults("0.9.0")
    distilled = generic_defaults("0.9.5", [1.0, 0.5])
    assert (distilled["guidance_scale"], distilled["height"]) == (1.0, 704)
    assert "negative_prompt" not in distilled
    assert settle_steps({}, distilled).sigmas == (1.0, 0.5)


def test_absent_models_say_what_to_fetch(cache: Callable[[str], Path], paper_model: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve_model(NAME)
    said = str(caught.value)
    assert f"`hf download {REPOSITORY} ltxv-2b-0.9.8-distilled.safetensors`" in said
    assert f'`hf download {REPOSITORY} --include "text_encoder/*" --include "tokenizer/*"`' in said
    assert "6.34 GB, licence: LTXV Open Weights" in said
    snapshot = cache("PixArt-alpha/PixArt-XL-2-1024-MS")
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(paper_model / name, snapshot / name)
    with pytest.raises(CheckpointError) as caught:
        resolve_model(NAME)
    assert "text_encoder/*" not in str(caught.value), "it is there already"


def test_the_cache_is_looked_up(cache: Callable[..., Path], paper_model: Path) -> None:
    file = _write(cache(REPOSITORY, "old") / CATALOG[NAME].file)
    newer = cache(REPOSITORY, "new")
    assert resolve_model(NAME) == file, "a file of an earlier fetch counts"
    assert resolve_model(NAME) == find_entry(CATALOG[NAME])
    assert resolve_model(_write(newer / CATALOG[NAME].file)) == newer / CATALOG[NAME].file
    assert resolve_model(NAME).parent == newer
    entry = CATALOG["ltx-13b-0.9.7-distilled"]
    assert find_entry(entry) is None
    assert entry.folder is not None
    folder = cache(entry.folder)
    (folder / "model_index.json").write_text("{}")
    assert find_entry(entry) is None, "half a folder is none"
    shutil.copytree(paper_model, folder, dirs_exist_ok=True)
    (folder / "model_index.json").write_text((paper_model / "model_index.json").read_text())
    assert resolve_model(entry.name) == folder
    assert model_defaults(folder)["allowed_inference_steps"] == entry.defaults["allowed_inference_steps"]
    assert model_defaults(folder)["height"] == 64, "what the folder itself says comes first"


def test_a_named_folder_has_the_catalogs_defaults(cache: Callable[[str], Path], ltx_folders: dict[str, Path]) -> None:
    from vgen.pipelines import TextToVideoPipeline

    entry = CATALOG["ltx-13b-0.9.7-distilled"]
    assert entry.folder is not None
    shutil.copytree(ltx_folders["0.9.5"], cache(entry.folder), dirs_exist_ok=True)
    pipeline = TextToVideoPipeline.from_pretrained(entry.name)
    assert len(pipeline.fill_settings({"prompt": "a"}).sigmas) == 8
    plain = TextToVideoPipeline.from_pretrained(entry.folder)
    assert plain.fill_settings({"prompt": "a"}).guidance_scale == 3.0, "a repository is what diffusers makes of it"


def test_text_encoders_are_found(cache: Callable[[str], Path], paper_model: Path, tmp_path: Path) -> None:
    alone = _write(tmp_path / "ltx.safetensors")
    with pytest.raises(
        CheckpointError, match=r"ltx\.safetensors has no text encoder, and none is on this machine\. Fetch"
    ):
        find_text_encoder(alone)
    assert find_text_encoder(alone, paper_model) == paper_model
    assert find_text_encoder(paper_model / "beside.safetensors") == paper_model
    with pytest.raises(CheckpointError, match=r"'no/where' has no text_encoder/"):
        find_text_encoder(alone, "no/where")
    snapshot = cache(REPOSITORY)
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(paper_model / name, snapshot / name)
    assert find_text_encoder(alone) == snapshot
    assert find_text_encoder(alone, REPOSITORY) == snapshot
    (snapshot / "text_encoder" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder/config\.json is missing"):
        find_text_encoder(alone)


def test_models_command(
    cache: Callable[[str], Path], run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    _write(cache(REPOSITORY) / CATALOG[NAME].file)
    done = run_cli("models")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.split()}
    assert set(CATALOG) | {"sprites"} <= lines.keys()
    assert "6.34 GB" in lines[NAME] and "15.86 GB" in lines[NAME] and lines[NAME].split()[-1] == "yes"
    assert lines["ltx-13b-0.9.8-dev"].split()[-1] == "no" and "28.57 GB" in lines["ltx-13b-0.9.8-dev"]
    assert lines["sprites"].split()[-1] == "yes"
    rows = {row["name"]: row for row in json.loads(run_cli("models", "--json").out)}
    assert rows[NAME]["path"].endswith(CATALOG[NAME].file)
    assert rows["ltx-2b-0.9.5"]["path"] is None


@pytest.mark.parametrize("words", [["models"], ["convert", "--help"]])
def test_no_torch(words: list[str]) -> None:
    code = f"import sys; from vgen.cli import app; app({words!r}, standalone_mode=False); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "False"
