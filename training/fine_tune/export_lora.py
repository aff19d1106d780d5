"""From a run to a LoRA file."""

from __future__ import annotations

import re
from pathlib import Path

from peft import LoraConfig as PeftConfig
from safetensors.torch import save_file
from torch import Tensor

from vgen.errors import CheckpointError, OutputError
from vgen.io.files import exists_message, part_of
from vgen.io.weights.lora_export import lora_tensors
from vgen.training.checkpoint.store import CheckpointStore
from vgen.training.fine_tune.evaluate import best_checkpoint, open_run

_FACTOR = re.compile(r"transformer\.(?P<module>.+)\.lora_(?P<side>[AB])\.default\.weight")


def export_lora(
    run: Path, output: Path, layout: str, checkpoint: str | None = None, overwrite: bool = False
) -> tuple[Path, int]:
    """Write a checkpoint's averaged LoRA; no model is loaded.

    Args:
        run: folder of a run of `vgen train lora`.
        output: .safetensors file.
        layout: see `lora_tensors`.
        checkpoint: name of one; None: what `vgen evaluate` chose, else the newest.
        overwrite: replace `output`.
    Returns:
        The checkpoint, and the number of layers.
    Raises:
        RequestError: not such a run, or an unknown layout.
        CheckpointError: no such checkpoint, or a damaged one.
        OutputError: `output` exists or cannot be written.
    """
    recipe, config = open_run(run)
    _check_output(output, overwrite)
    store = CheckpointStore(run / "checkpoints", recipe.checkpoint.keep)
    chosen = best_checkpoint(run, store) if checkpoint is None else store.folder / checkpoint
    if chosen not in store.all():
        have = ", ".join(path.name for path in store.all())
        raise CheckpointError(f"checkpoint={checkpoint!r} is not there: use one of {have}.")
    factors = _factors(store.load(chosen).ema, chosen)
    alpha = config.lora.alpha if config.lora.alpha is not None else float(config.lora.rank)
    about = PeftConfig(r=config.lora.rank, lora_alpha=alpha, target_modules=sorted(factors)).to_dict()
    tensors, metadata = lora_tensors(factors, dict.fromkeys(factors, alpha), layout, about)
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    with part_of(output, overwrite=overwrite, bytes_needed=size + 8 * len(tensors) * 256) as part:
        save_file(tensors, part, metadata)
    return chosen, len(factors)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise OutputError(f"output={str(output)!r} must end in .safetensors.")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"the folder {output.absolute().parent} does not exist; make it first.")
    if output.exists() and not overwrite:
        raise OutputError(exists_message(output))


def _factors(state: dict[str, Tensor], source: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up by module."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{source} holds {name!r}, which is not part of a LoRA.")
        found.setdefault(match["module"], {})[match["side"]] = value
    return {module: (sides["A"], sides["B"]) for module, sides in found.items()}
