"""What the instructions of this machine's processor are."""

from __future__ import annotations

from typing import Any

import torch

_X86 = ("x86_64", "amd64")


def lacks(*instructions: str) -> bool:
    """Whether this is an x86 processor that is known to have none of some instruction sets.

    Args:
        instructions: names as in `torch.cpu.get_capabilities()`, for instance avx512_vnni.
    """
    read: Any = getattr(torch.cpu, "get_capabilities", dict)  # older versions of torch cannot say
    found = read()
    return str(found.get("architecture", "")).lower() in _X86 and not any(found.get(name) for name in instructions)
