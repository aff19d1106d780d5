"""Single files in the original layout: there and back, straight into models, and what is refused."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from vgen.errors import CheckpointError, OutputError
from vgen.hub.convert import SIDECAR, WEIGHTS, file_to_folder, folder_to_file
from vgen.hub.find import model_defaults, model_hash, model_strides, resolve_model
from vgen.io.weights.safetensors_file import read_header
from vgen.io.weights.single_file import COMPONENTS, SingleFile
from vgen.models import CausalVideoVAE, VideoDiT
from vgen.models.empty import empty_model, model_shapes
from vgen.types import Strides

GENERATIONS = ("0.9.0", "0.9.1", "0.9.5")
_CLASSES = {"transformer": VideoDiT, "vae": CausalVideoVAE}
Original = Callable[..., tuple[Path, Path]]


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """The same keys with the same types and bits."""
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left
    )


def _load(file: Path, kind: str, **where: Any) -> torch.nn.Module:
    opened = SingleFile.open(file)
    part = opened.part(kind)
    model = empty_model(COMPONENTS[kind].class_name, part.config)
    opened.load_into(model, part, **where)
    return model


def _change(file: Path, change: Callable[[dict[str, torch.Tensor]], Any], **metadata: str) -> Path:
    tensors, kept = load_file(file), read_header(file).metadata
    change(tensors)
    save_file(tensors, file, metadata={**kept, **metadata} or None)
    return file


@pytest.mark.parametrize("generation", GENERATIONS)
def test_folder_to_file_and_back(ltx_random: Callable[[str], Path], tmp_path: Path, generation: str) -> None:
    folder, file, again = ltx_random(generation), tmp_path / "a.safetensors", tmp_path / "again"
    folder_to_file(folder, file, model_shapes)
    assert not {key for key in load_file(file) if not key.startswith(("model.diffusion_model.", "vae."))}
    file_to_folder(file, again, model_shapes, text_encoder=folder)
    for name in ("transformer", "vae"):
        assert _equal(load_file(folder / name / WEIGHTS), load_file(again / name / WEIGHTS))
    jsons = sorted(path.relative_to(folder) for path in folder.rglob("*.json"))
    assert jsons == sorted(path.relative_to(again) for path in again.rglob("*.json"))
    assert [path for path in jsons if (folder / path).read_bytes() != (again / path).read_bytes()] == []
    assert not (again / SIDECAR).exists()
    assert resolve_model(again) == again


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_file_to_folder_and_back(ltx_original: Original, tmp_path: Path, generation: str, configured: bool) -> None:
    """Without a config in the metadata nothing says how many heads there are: these files need the public 32."""
    _, file = ltx_original(generation, configured)
    again = tmp_path / "again.safetensors"
    if not configured:
        _widen_to_32_heads(file)
    file_to_folder(file, tmp_path / "folder", model_shapes)
    folder_to_file(tmp_path / "folder", again, model_shapes)
    assert _equal(load_file(file), load_file(again))
    assert read_header(file).metadata == read_header(again).metadata
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["_class_name"] == ("LTXConditionPipeline" if generation == "0.9.5" else "LTXPipeline")
    assert index["text_encoder"] == [None, None]


def _widen_to_32_heads(file: Path) -> None:
    """Replace the transformer by one of 32 heads with 2 channels each."""
    shapes = model_shapes(
        "VideoDiT",
        {"in_channels": 8, "out_channels": 8, "num_attention_heads": 32, "attention_head_dim": 2}
        | {"cross_attention_dim": 64, "num_layers": 3, "caption_channels": 32},
    )
    table, generator = COMPONENTS["transformer"].table({}), torch.Generator().manual_seed(5)

    def replace(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith("model.")]:
            del tensors[key]
        for key, shape in shapes.items():
            tensors[f"model.diffusion_model.{table.to_original(key)}"] = torch.randn(shape, generator=generator)

    _change(file, replace)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_sniffing_finds_what_the_metadata_says(ltx_original: Original, generation: str) -> None:
    _, file = ltx_original(generation)
    told = SingleFile.open(file)
    plain = SingleFile(file, told.entries, {})
    assert plain.part("vae").config == told.part("vae").config
    assert plain.part("vae").keys == told.part("vae").keys
    assert plain.generation == told.generation == generation
    assert plain.scheduler == SingleFile(file, told.entries, {"config": "{}"}).scheduler
    assert plain.scheduler["use_dynamic_shifting"] == (generation != "0.9.5")
    with pytest.raises(CheckpointError, match="no multiple of the 32 heads"):
        SingleFile(file, {**told.entries, **_of_width(told, 40)}, {}).part("transformer")
    assert told.scheduler["use_dynamic_shifting"], "the folder's scheduler, not the generation's"
    _widen_to_32_heads(file)
    sniffed = SingleFile(file, SingleFile.open(file).entries, {}).part("transformer").config
    assert (sniffed["num_attention_heads"], sniffed["attention_head_dim"], sniffed["num_layers"]) == (32, 2, 3)
    assert (sniffed["caption_channels"], sniffed["in_channels"], sniffed["out_channels"]) == (32, 8, 8)


def _of_width(file: SingleFile, width: int) -> dict[str, Any]:
    key = "model.diffusion_model.patchify_proj.weight"
    return {key: file.entries[key]._replace(shape=(width, 8))}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_loaded_tensors_are_the_folders(ltx_original: Original, generation: str) -> None:
    folder, file = ltx_original(generation)
    for kind, cls in _CLASSES.items():
        dtype = torch.bfloat16 if kind == "transformer" else torch.float32
        loaded, expected = _load(file, kind), cls.from_pretrained(folder, subfolder=kind, dtype=dtype)
        assert _equal(dict(loaded.state_dict()), dict(expected.state_dict()))
        assert not loaded.training
        told = {key: value for key, value in loaded.config.items() if not key.startswith("_")}
        assert COMPONENTS[kind].to_original(told) == COMPONENTS[kind].to_original(expected.config)


def test_dtype_and_device(ltx_original: Original, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = ltx_original("0.9.0")
    opened: list[str] = []
    plain = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda *a, device, **k: opened.append(device) or plain(*a, **k))
    loaded = _load(file, "vae", dtype=torch.float16, device="cuda:1")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float16}
    assert opened == ["cuda:1"], "tensors are read straight to the device"
    assert _load(file, "transformer").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_one_copy_at_most(ltx_original: Original, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None) -> None:
    """Beside what is in the model already, one tensor of the file is alive at any time."""
    _, file = ltx_original("0.9.5")
    alive: list[weakref.ref[torch.Tensor]] = []
    most: list[int] = []
    plain = safetensors.safe_open

    class Counting:
        def __init__(self, *given: Any, **named: Any) -> None:
            self.inside = plain(*given, **named)

        def __enter__(self) -> Counting:
            self.handle = self.inside.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.inside.__exit__(*error)

        def get_tensor(self, key: str) -> torch.Tensor:
            most.append(sum(ref() is not None for ref in alive))
            tensor = self.handle.get_tensor(key)
            alive.append(weakref.ref(tensor))
            return tensor

    monkeypatch.setattr(safetensors, "safe_open", Counting)
    opened = SingleFile.open(file)
    part = opened.part("vae")
    model = empty_model("CausalVideoVAE", part.config)
    assert all(value.is_meta for value in model.state_dict().values()), "built without memory"
    opened.load_into(model, part, dtype=dtype)
    assert len(most) == len(model.state_dict()) > 50
    assert max(most) <= 1
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    assert len(own) == len(most), "no tensor is a view of the file"
    assert not any(value.is_meta for value in model.state_dict().values())


def test_faulty_tensors_are_named(ltx_original: Original, tmp_path: Path) -> None:
    _, file = ltx_original("0.9.1")
    gone = [f"vae.decoder.up_blocks.0.res_blocks.0.conv{n}.conv.{leaf}" for n in (1, 2) for leaf in ("bias", "weight")]
    gone += ["vae.decoder.last_scale_shift_table", "vae.decoder.timestep_scale_multiplier"]

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for key in gone:
            del tensors[key]
        tensors["vae.stranger"] = torch.zeros(2)
        tensors["vae.encoder.conv_in.conv.bias"] = torch.zeros(3)

    _change(file, spoil)
    with pytest.raises(CheckpointError) as caught:
        _load(file, "vae")
    said = str(caught.value)
    assert f"{file}: the weights of the vae lack 6 tensors: {', '.join(sorted(gone)[:5])} and 1 more;" in said
    assert "hold 1 unknown tensor: vae.stranger;" in said
    assert said.endswith("have 1 tensor of another shape: vae.encoder.conv_in.conv.bias is [3], not [8].")
    with pytest.raises(CheckpointError, match="lack 6 tensors"):
        file_to_folder(file, tmp_path / "folder", model_shapes)
    assert not (tmp_path / "folder").exists()
    _change(file, lambda tensors: tensors.update(stranger=torch.zeros(1)))
    with pytest.raises(CheckpointError, match="1 tensor that belong to no component: stranger"):
        file_to_folder(file, tmp_path / "folder", model_shapes)


def test_shards(ltx_random: Callable[[str], Path], tmp_path: Path) -> None:
    folder = ltx_random("0.9.5")
    whole, place = load_file(folder / "transformer" / WEIGHTS), folder / "transformer"
    folder_to_file(folder, tmp_path / "whole.safetensors", model_shapes)
    keys = sorted(whole)
    for number, part in enumerate((keys[:20], keys[20:])):
        save_file({key: whole[key] for key in part}, place / f"shard-{number}.safetensors")
    weight_map = {key: f"shard-{int(key in keys[20:])}.safetensors" for key in keys}
    (place / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (place / WEIGHTS).unlink()
    folder_to_file(folder, tmp_path / "sharded.safetensors", model_shapes)
    assert (tmp_path / "sharded.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_changed_folder_does_not_keep_what_the_file_said(ltx_original: Original, tmp_path: Path) -> None:
    _, file = ltx_original("0.9.5")
    file_to_folder(file, tmp_path / "folder", model_shapes)
    config = tmp_path / "folder" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.25}))
    folder_to_file(tmp_path / "folder", tmp_path / "again.safetensors", model_shapes)
    assert SingleFile.open(tmp_path / "again.safetensors").part("vae").config["scaling_factor"] == 0.25
    assert "licence" not in read_header(tmp_path / "again.safetensors").metadata


def test_faulty_folders(ltx_random: Callable[[str], Path], tmp_path: Path) -> None:
    folder = ltx_random("0.9.0")
    _change(folder / "vae" / WEIGHTS, lambda tensors: tensors.pop("latents_mean"))
    with pytest.raises(CheckpointError, match=r"vae lack 1 tensor: latents_mean"):
        folder_to_file(folder, tmp_path / "a.safetensors", model_shapes)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "patch_size": 2}))
    with pytest.raises(CheckpointError, match="transformer: the transformer config has patch_size=2"):
        folder_to_file(folder, tmp_path / "a.safetensors", model_shapes)
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(OutputError, match="exists already"):
        folder_to_file(folder, tmp_path / "b.safetensors", model_shapes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "ltx-0.9.0"]


def test_fp8(ltx_original: Original) -> None:
    _, file = ltx_original("0.9.5")
    before = load_file(file)
    key = "model.diffusion_model.transformer_blocks.0.ff.net.2.weight"

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key] = tensors[key].to(torch.float8_e4m3fn)

    opened = SingleFile.open(_change(file, narrow))
    with pytest.raises(
        CheckpointError, match=r"1 FP8 weights without scales .*upcast_fp8=True.*without fp8 in its name"
    ):
        opened.check_precision()
    opened.check_precision(upcast_fp8=True)
    widened = _load(file, "transformer", dtype=torch.bfloat16).state_dict()["transformer_blocks.0.ff.net.2.weight"]
    assert torch.equal(widened, before[key].to(torch.float8_e4m3fn).to(torch.bfloat16))
    with pytest.raises(CheckpointError, match="FP8 weights without scales"):
        resolve_model(file)
    assert resolve_model(file, upcast_fp8=True) == file
    scaled = _change(file, lambda tensors: tensors.update({f"{key}_scale": torch.ones(1)}))
    for asked in (False, True):
        with pytest.raises(CheckpointError, match=r"quantised weights \(F8_E4M3\) with scales .* cannot be read here"):
            SingleFile.open(scaled).check_precision(asked)


def test_metadata_comes_first(ltx_original: Original) -> None:
    _, file = ltx_original("0.9.5")
    config = json.loads(read_header(file).metadata["config"])
    config["transformer"]["positional_embedding_theta"] = 500.0
    config["vae"]["scaling_factor"] = 0.5
    config["allowed_inference_steps"] = [1.0, 0.5]
    _change(file, lambda tensors: None, config=json.dumps(config))
    opened = SingleFile.open(file)
    assert opened.part("transformer").config["rope_theta"] == 500.0
    assert opened.part("vae").config["scaling_factor"] == 0.5
    assert model_defaults(file)["allowed_inference_steps"] == [1.0, 0.5]
    assert model_defaults(file)["guidance_scale"] == 1.0, "who states steps is distilled"
    for text, what in (("{", "is not JSON"), ("[]", "is not a JSON object"), ('{"vae": {"dims": 2}}', "dims=2")):
        _change(file, lambda tensors: None, config=text)
        with pytest.raises(CheckpointError, match=what):
            SingleFile.open(file).part("vae")
    _change(file, lambda tensors: None, config='{"vae": {"blocks": [["res_x", 1], ["res_x", 1]]}}')
    with pytest.raises(CheckpointError, match="its vae config is broken"):
        SingleFile.open(file).part("vae")


def test_other_files(tmp_path: Path, ltx_original: Original) -> None:
    save_file({"lora.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"holds nothing of LTX-Video 0\.9\.0 to 0\.9\.8 .* it has lora\.weight"):
        SingleFile.open(tmp_path / "other.safetensors")
    _, file = ltx_original("0.9.0")
    start = "model.diffusion_model."
    bare = {key.removeprefix(start): value for key, value in load_file(file).items() if key.startswith(start)}
    save_file(bare, tmp_path / "bare.safetensors", metadata=read_header(file).metadata)
    opened = SingleFile.open(tmp_path / "bare.safetensors")
    assert opened.kinds == ("transformer",)
    assert _equal(dict(_load(opened.path, "transformer").state_dict()), dict(_load(file, "transformer").state_dict()))
    with pytest.raises(CheckpointError, match="holds no vae, only: transformer"):
        opened.part("vae")


def test_what_a_file_says_without_being_loaded(ltx_original: Original, tmp_path: Path) -> None:
    folder, file = ltx_original("0.9.5")
    assert model_strides(file) == model_strides(folder) == Strides(8, 32, 32)
    assert model_defaults(file)["max_sequence_length"] == 256
    assert model_defaults(file)["num_inference_steps"] == 40
    named = file.rename(tmp_path / "ltxv-2b-0.9.8-distilled.safetensors")
    assert model_defaults(named)["guidance_scale"] == 1.0
    first = model_hash(named)
    assert len(first) == 64
    _change(named, lambda tensors: None, licence="other")
    assert model_hash(named) != first
