"""Checks of a model's folder that need no weights in memory: every part there, sound, and nothing that runs code."""

from __future__ import annotations

from pathlib import Path

from vgen.errors import CheckpointError
from vgen.io.files import read_json
from vgen.io.weights.safetensors_file import read_entries
from vgen.io.weights.weight_files import check_variant, variants_in, weight_files

INDEX = "model_index.json"
"""The file of a folder that lists a model's components."""

_LIBRARIES = {"vgen", "diffusers", "transformers"}
_FETCH_AGAIN = "Copy or fetch the whole model again."


def check_model(folder: Path, variant: str | None = None) -> None:
    """Check a model folder: every component there, its JSON whole, its weights safetensors with a sound header.

    Args:
        folder: of the model.
        variant: of the weights; at least one component must have it.
    Raises:
        RequestError: a variant that cannot be one.
        CheckpointError: names the file and what is wrong with it.
    """
    check_variant(variant)
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder / INDEX} is missing. Is this a model's folder, and the whole of it?")
    index = read_json(folder / INDEX)
    components = {key: value for key, value in index.items() if isinstance(value, list)}
    for name in ("transformer", "vae"):
        if name not in components:
            raise CheckpointError(f"{folder / INDEX} lists no {name!r}: it is not a video model's folder.")
    held: set[str] = set()
    for name, entry in components.items():
        if len(entry) != 2 or entry == [None, None]:
            continue
        library, class_name = entry
        if not (isinstance(library, str) and library in _LIBRARIES and isinstance(class_name, str)):
            raise CheckpointError(
                f"{folder / INDEX} asks for code from {library!r} for {name!r}; "
                f"only {', '.join(sorted(_LIBRARIES))} are used, and code in a model's folder is never run."
            )
        has_weights = not class_name.endswith("Scheduler") and "Tokenizer" not in class_name
        _check_component(folder / name, needs_weights=has_weights, variant=variant)
        held |= set(variants_in(folder / name)) if has_weights else set()
    if variant is not None and variant not in held:
        there = ", ".join(sorted(held - {""})) or "none"
        raise CheckpointError(
            f"{folder} has no weights of variant={variant!r} (variants there: {there}); leave it out."
        )


def _check_component(folder: Path, needs_weights: bool, variant: str | None = None) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: model_index.json lists it. {_FETCH_AGAIN}")
    for file in sorted(folder.glob("*.json")):
        content = read_json(file)
        if "auto_map" in content:
            raise CheckpointError(f"{file} asks for remote code (auto_map); code in a model's folder is never run.")
    if not needs_weights:
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder / 'config.json'} is missing. {_FETCH_AGAIN}")
    read_entries(weight_files(folder, variant))


def check_text_encoder(folder: Path, variant: str | None = None) -> None:
    """Check a folder's text_encoder/ and tokenizer/; of the weights those that are loaded.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    _check_component(folder / "text_encoder", needs_weights=True, variant=variant)
    _check_component(folder / "tokenizer", needs_weights=False)
