"""Names to folders, and what a folder says without loading it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vgen.errors import CheckpointError
from vgen.hub.find import model_defaults, model_hash, model_strides, resolve_model
from vgen.types import Strides


@pytest.fixture
def folder(paper_model: Path) -> Path:
    """A model folder that a check finds sound."""
    return paper_model


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_folder_is_found_by_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(folder) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve_model("model") == Path("model")


def test_unknown_names() -> None:
    with pytest.raises(
        CheckpointError, match=r"model='sprite' is not known: did you mean 'sprites'\? Known are sprites"
    ):
        resolve_model("sprite")
    with pytest.raises(CheckpointError, match=r"model='no/such' is not known.*hf download no/such"):
        resolve_model("no/such")
    with pytest.raises(CheckpointError, match="is not a name"):
        resolve_model("")
    with pytest.raises(CheckpointError, match=r"cannot be looked up|not known"):
        resolve_model("x" * 5000)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json' is a file; a model is a folder"):
        resolve_model(folder / "model_index.json")


def test_the_cache_of_the_hub_is_looked_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--me--mine"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    with pytest.raises(CheckpointError, match="hf download me/mine"):
        resolve_model("me/mine")
    shutil.copytree(folder, repository / "snapshots" / "abc123")
    assert resolve_model("me/mine") == repository / "snapshots" / "abc123"
    (repository / "refs" / "main").write_text("../../../../model")
    with pytest.raises(CheckpointError, match="not known"):
        resolve_model("me/mine")


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "transformer/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
    ],
)
def test_missing_files_are_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file}|{file.partition('/')[0]} has no weights: .* is missing"):
        resolve_model(folder)


@pytest.mark.parametrize("name", ["transformer", "vae", "tokenizer", "scheduler"])
def test_missing_components_are_named(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    with pytest.raises(CheckpointError, match=rf"model/{name} is missing: model_index\.json lists it"):
        resolve_model(folder)


@pytest.mark.parametrize(
    ("break_it", "cause"),
    [
        (lambda f: (f / "model_index.json").write_text("{"), r"model_index\.json is not JSON"),
        (lambda f: (f / "model_index.json").write_text("[]"), "is not a JSON object"),
        (lambda f: (f / "model_index.json").write_text("{}"), "lists no 'transformer'"),
        (lambda f: (f / "vae" / "config.json").write_bytes(b"\xff"), r"vae/config\.json is not JSON"),
        (lambda f: _change(f / "model_index.json", vae=["evil", "Model"]), "asks for code from 'evil' for 'vae'"),
        (lambda f: _change(f / "model_index.json", vae=[["x"], "Model"]), "asks for code from"),
        (lambda f: _change(f / "vae" / "config.json", auto_map={"A": "evil.B"}), "asks for remote code"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x80\x04" * 50), "is a pickle"),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").rename(f / "vae" / "pytorch_model.bin"),
            "Only pytorch_model.bin is there, which could run code",
        ),
    ],
)
def test_broken_folders(folder: Path, break_it: Callable[[Path], object], cause: str) -> None:
    break_it(folder)
    with pytest.raises(CheckpointError, match=cause):
        resolve_model(folder)


def test_nothing_in_a_folder_is_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "evil.py").write_text("raise SystemExit('code ran')")
    monkeypatch.syspath_prepend(str(folder))
    _change(folder / "model_index.json", transformer=["evil", "VideoDiT"])
    with pytest.raises(CheckpointError, match="never run"):
        resolve_model(folder)


def test_shards(folder: Path) -> None:
    vae = folder / "vae"
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "part-1.safetensors")
    index = vae / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": "part-1.safetensors"}}))
    assert resolve_model(folder) == folder
    index.write_text(json.dumps({"weight_map": {"weight": "part-1.safetensors", "bias": "part-2.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"part-2\.safetensors is missing"):
        resolve_model(folder)
    index.write_text(json.dumps({"weight_map": {"weight": "../text_encoder/model.safetensors"}}))
    with pytest.raises(CheckpointError, match="is missing"):
        resolve_model(folder)
    index.write_text(json.dumps({"weight_map": 3}))
    with pytest.raises(CheckpointError, match="no weight_map"):
        resolve_model(folder)


def test_defaults(folder: Path) -> None:
    found = model_defaults(folder)
    assert found["height"] == 64
    assert found["guidance_scale"] == 2.5
    _change(folder / "model_index.json", defaults={"num_inference_steps": None})
    assert "height" not in model_defaults(folder)
    assert "num_inference_steps" not in model_defaults(folder), "null says nothing"
    _change(folder / "model_index.json", _class_name="LTXPipeline")
    assert model_defaults(folder)["width"] == 704
    _change(folder / "model_index.json", defaults=[1])
    with pytest.raises(CheckpointError, match="'defaults' is not a JSON object"):
        model_defaults(folder)


@pytest.mark.parametrize(
    ("config", "strides"),
    [
        ({}, Strides(4, 8, 8)),
        ({"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}, Strides(8, 32, 32)),
        ({"downsample_type": ["conv"] * 4, "spatio_temporal_scaling": [True, True, True, False]}, Strides(8, 32, 32)),
        (
            {
                "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
                "spatio_temporal_scaling": [True] * 4,
            },
            Strides(8, 32, 32),
        ),
        ({"patch_size": 2}, Strides(4, 4, 4)),
    ],
)
def test_strides(folder: Path, config: dict[str, Any], strides: Strides) -> None:
    _change(folder / "vae" / "config.json", **config)
    assert model_strides(folder) == strides


def test_strides_count_the_patch_size(folder: Path) -> None:
    _change(folder / "transformer" / "config.json", patch_size=2)
    assert model_strides(folder) == Strides(4, 16, 16)


def test_strides_of_a_broken_config(folder: Path) -> None:
    for config in ({"spatial_compression_ratio": "x"}, {"spatial_compression_ratio": -8}, {"patch_size": [4]}):
        _change(folder / "vae" / "config.json", **{"patch_size": 4, "spatial_compression_ratio": None, **config})
        with pytest.raises(CheckpointError, match=r"vae/config\.json"):
            model_strides(folder)


def test_strides_are_those_of_the_loaded_models(tiny_pipeline_folder: Path, ltx_folders: dict[str, Path]) -> None:
    from vgen.models import CausalVideoVAE

    for folder in (tiny_pipeline_folder, *ltx_folders.values()):
        assert model_strides(folder) == CausalVideoVAE.from_pretrained(folder, subfolder="vae").strides
        assert resolve_model(folder) == folder


def test_hash(folder: Path, tmp_path: Path) -> None:
    first = model_hash(folder)
    assert len(first) == 64
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("words do not count")
    assert model_hash(copy) == first
    save_file({"weight": np.ones(4, np.float32)}, copy / "vae" / "diffusion_pytorch_model.safetensors")
    assert model_hash(copy) != first
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", copy / "vae")
    assert model_hash(copy) == first
    shutil.copy(copy / "vae" / "diffusion_pytorch_model.safetensors", copy / "another-model.safetensors")
    assert model_hash(copy) == first, "a single file of another model on the top level is never loaded"


def test_the_shipped_model_is_named_as_in_its_scores() -> None:
    root = Path(__file__).parents[3]
    assert f"`{model_hash(resolve_model('sprites'))}`" in (root / "docs" / "scores" / "sprites-256.md").read_text()


def test_every_byte_of_a_large_file_counts(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    size = (1 << 28) + (1 << 21)
    digests = []
    for byte in (b"\0", b"\1"):
        with file.open("wb") as stream:  # sparse but for one byte in the middle
            stream.truncate(size)
            stream.seek(size // 2)
            stream.write(byte)
        digests.append(model_hash(folder / "text_encoder"))
    assert digests[0] != digests[1]


def test_a_linked_component_counts(folder: Path, tmp_path: Path) -> None:
    first = model_hash(folder)
    shutil.move(folder / "text_encoder", tmp_path / "elsewhere")
    (folder / "text_encoder").symlink_to(tmp_path / "elsewhere")
    assert model_hash(folder) == first
    save_file({"weight": np.ones(4, np.float32)}, tmp_path / "elsewhere" / "model.safetensors")
    assert model_hash(folder) != first


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "text_encoder" / "spiece.model").symlink_to(folder / "nowhere")
    assert model_hash(folder), "a link to nothing holds nothing"
    (folder / "vae" / "config.json").unlink()
    (folder / "vae" / "config.json").mkdir()
    assert model_hash(folder)
    with pytest.raises(CheckpointError, match=r"nowhere.* cannot be read: No such file"):
        model_hash(folder / "nowhere")
