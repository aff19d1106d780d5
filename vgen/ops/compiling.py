"""The C code of this folder, compiled once by the system's compiler and kept; None where that cannot be done."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from vgen.errors import OutputError
from vgen.io.files import part_of, private_folder

logger = logging.getLogger(__name__)

SOURCE: Final = Path(__file__).with_name("native.c")
_FLAGS: Final = ("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_PATIENCE: Final = 120  # seconds that a compiler may take


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library.

    It is kept in vgen's cache folder, see vgen.io.files.private_folder, under a name that differs with source, flags,
    compiler and processor.

    Returns:
        None where there is no Linux, no C compiler, or no OpenMP runtime that torch has loaded: then the plain
        references are used.
    """
    compiler = shutil.which(os.environ.get("CC", "") or "cc") or shutil.which("gcc")
    runtime = _openmp_runtime()
    if not sys.platform.startswith("linux") or compiler is None or runtime is None:
        return None
    try:
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)  # one pool of threads: torch's own
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, OutputError, subprocess.SubprocessError) as error:
        logger.info("The fused CPU operations are not used: %s", error)
        return None


def _openmp_runtime() -> str | None:
    """The path of the GNU OpenMP runtime in this process, None where there is none."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    paths = [line.split(None, 5)[5] for line in lines if len(line.split(None, 5)) == 6]
    return next((path for path in paths if Path(path).name.startswith("libgomp")), None)


def _compiled(compiler: str) -> Path:
    known_as = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_PATIENCE).stdout
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(_FLAGS).encode() + known_as + _processor().encode())
    folder = private_folder("native")
    target = folder / f"{key.hexdigest()[:32]}.so"
    if target.exists():
        return target
    with part_of(target, overwrite=True) as part, tempfile.TemporaryDirectory() as work:
        built = Path(work, "native.o")
        # Compiled with OpenMP but linked without: its functions are then those of the runtime that torch has loaded.
        commands = [
            [compiler, *_FLAGS, "-fopenmp", "-c", str(SOURCE), "-o", str(built)],
            [compiler, "-shared", str(built), "-o", str(part), "-lm"],
        ]
        for command in commands:
            subprocess.run(command, capture_output=True, check=True, timeout=_PATIENCE)
    return target


def _processor() -> str:
    """What the processor can do, as the system describes it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
