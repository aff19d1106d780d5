#!/usr/bin/env python3
"""Do the requirements resolve for what users have? Metadata alone, nothing is installed (needs `uv`: extra dev).

Per platform and Python: `pip install -c constraints.txt .`, with the size of its download, then every extra together.
The configuration of this machine (indexes, links, caches of pip and uv) is ignored: uv's default index is asked.
Exit code 1 if a pair does not resolve. Without a network it says that it is skipped, and succeeds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv") or sys.exit("resolve: pip install uv")
PYTHONS = ("3.11", "3.12", "3.13")
PAIRS = (  # the name in the listing, uv's platform, the Pythons
    ("Linux x86-64, CUDA", "x86_64-manylinux_2_28", PYTHONS),
    ("Linux x86-64, CPU", "x86_64-manylinux_2_28", PYTHONS),
    ("macOS 14 arm64", "aarch64-apple-darwin", PYTHONS),
    ("Linux aarch64, CUDA", "aarch64-manylinux_2_28", ("3.12",)),
    ("Windows x86-64, CPU", "x86_64-pc-windows-msvc", ("3.12",)),
)
ONLY_CUDA = re.compile(r"triton|nvidia-.*|cuda-.*")  # what the CPU build of torch does not require
NO_NETWORK = re.compile(r"request failed|error sending request|dns error|timed out|failed to fetch", re.IGNORECASE)
CPU_INDEX = ("--torch-backend", "cpu")  # PyTorch's index of CPU builds; uv knows where it is

Locked = dict[str, tuple[str, int]]  # package -> version, bytes of its smallest wheel


class Unreachable(Exception):
    """The index did not answer."""


class Unresolvable(Exception):
    """The requirements contradict each other, or uv could not read them."""


def lock(work: Path, *words: str | Path) -> Locked:
    """`uv pip compile` that sees the default index and nothing else of this machine."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    environment |= {"MACOSX_DEPLOYMENT_TARGET": "14.0", "UV_HTTP_RETRIES": "1"}
    command = [UV, "pip", "compile", "--no-config", "--no-python-downloads", "--cache-dir", work / "cache"]
    command += ["--only-binary", ":all:", "--format", "pylock.toml", "--no-header", *words]
    run = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if run.returncode:
        raise (Unreachable if NO_NETWORK.search(run.stderr) else Unresolvable)(run.stderr.strip())
    return {
        package["name"]: (package["version"], min(wheel.get("size", 0) for wheel in package["wheels"]))
        for package in tomllib.loads(run.stdout)["packages"]
        if package.get("wheels")
    }


def reachable(work: Path, package: str, *words: str) -> bool:
    """Does the index answer? Anything but a missing network is raised."""
    (work / "probe.in").write_text(f"{package}\n")
    try:
        lock(work, work / "probe.in", "--no-deps", "--python-platform", "x86_64-manylinux_2_28", *words)
    except Unreachable:
        return False
    return True


def main() -> int:
    faults = []
    print(f"{'platform':<20} {'Python':<7} {'torch':<11} {'packages':>8} {'download':>9}   with all extras")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        without_cuda = work / "only-cuda.txt"
        without_cuda.touch()
        if not reachable(work, "einops"):
            print("resolve: SKIPPED, no package index answers from here")
            return 0
        cpu_index = reachable(work, "torch", *CPU_INDEX)
        for name, platform, pythons in PAIRS:
            for python in pythons:
                words = ["pyproject.toml", "-c", "constraints.txt", "--python-platform", platform]
                words += ["--python-version", python]
                cpu = name == "Linux x86-64, CPU"
                no_cuda = ("--excludes", without_cuda) if cpu else ()
                try:
                    core = lock(work, *words, *(CPU_INDEX if cpu and cpu_index else no_cuda))
                    extras = lock(work, *words, "-c", ".ci/constraints.txt", "--all-extras", *no_cuda)
                except Unreachable as error:
                    print(f"{name:<20} {python:<7} not checked: {str(error).splitlines()[0]}")
                    continue
                except Unresolvable as error:
                    print(f"{name:<20} {python:<7} DOES NOT RESOLVE")
                    faults.append(f"{name}, Python {python}\n{error}")
                    continue
                if name == "Linux x86-64, CUDA":
                    without_cuda.write_text(
                        "".join(f"{package}\n" for package in extras if ONLY_CUDA.fullmatch(package))
                    )
                torch_elsewhere = cpu and not cpu_index
                size = sum(size for package, (_, size) in core.items() if package != "torch" or not torch_elsewhere)
                note = "; size without torch, whose CPU index does not answer" if torch_elsewhere else ""
                row = f"{name:<20} {python:<7} {core['torch'][0]:<11} {len(core):>8} {size / 1e6:>6.0f} MB"
                print(f"{row}   {len(extras)}{note}", flush=True)
    print("\n\n".join(faults), file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
