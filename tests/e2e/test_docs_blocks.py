"""What the documentation shows can be copied: its code blocks run, and every `vgen` command in it exists.

A block that cannot run in a test has a mark in the line above it, `<!-- needs: REASON -->` (of REASONS).
Its commands and imports are checked all the same. The blocks of a page run in their order in one folder, the Python
blocks in one namespace. A block that begins with `# NAME.EXT` is a file of that name for the others.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import typer
from PIL import Image

from vgen.io.media.video import write_video

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REASONS = {
    "gpu": "a GPU",
    "network": "an installation from the network",
    "weights": "weights of others",
    "footage": "videos or other files of the reader",
    "time": "minutes to days",
}
# console: commands after `$ `, and what each prints (numbers may differ); text: what something prints or looks like
LANGUAGES = ("bash", "console", "python", "toml", "text")
SHORTER = {  # words of the documentation -> what runs here in their place
    "--steps 300 --batch 4": "--steps 2 --batch 2",
    "--seconds 4": "--seconds 3",
}
MARK = re.compile(r"<!-- needs: ([a-z, ]+) -->")
FENCE = re.compile(r"^```(\S*)\s*$")
NAMED_FILE = re.compile(r"# ([\w-]+\.(?:toml|py|txt))\b")


class Block(NamedTuple):
    """A fenced block of a page: the line of its fence, its language, its text, and what it needs."""

    page: str
    line: int
    language: str
    text: str
    needs: tuple[str, ...]

    @property
    def file(self) -> str:
        """The name of the file that it is, or nothing."""
        named = NAMED_FILE.match(self.text)
        return named[1] if named else ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks(page: Path) -> list[Block]:
    blocks: list[Block] = []
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    before = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if opened is None and fence:
            opened, lines = (number, fence[1]), []
        elif opened is not None and fence:
            mark = MARK.fullmatch(before.strip())
            needs = tuple(word.strip() for word in mark[1].split(",")) if mark else ()
            blocks.append(Block(str(page.relative_to(ROOT)), *opened, "\n".join(lines) + "\n", needs))
            opened, before = None, ""
        elif opened is not None:
            lines.append(line)
        elif line.strip():
            before = line
    assert opened is None, f"{page}: a block is not closed"
    return blocks


BLOCKS = [block for page in PAGES for block in _blocks(page)]
RUN = [block for block in BLOCKS if not block.needs and block.language in ("bash", "console", "python")]


def _commands(block: Block, text: str) -> Iterator[list[str]]:
    """The commands of a block as words, without comments; those joined by && one after the other."""
    if block.language == "console":
        text = "".join(f"{command}\n" for command, _ in _session(text))
    elif block.language != "bash":
        return
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        waiting += line + "\n"
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # a quote that ends in a later line
            continue
        waiting = ""
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]
    assert not waiting, f"a quote is not closed: {waiting}"


def _session(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, and what each prints."""
    parts = [part.partition("\n") for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    return [(command, printed) for command, _, printed in parts]


# --- Every block, whether it runs or not.


def test_every_block_runs_or_says_what_it_needs() -> None:
    odd = [f"{b}: language {b.language!r}" for b in BLOCKS if b.language not in LANGUAGES]
    odd += [f"{b}: needs {word!r}" for b in BLOCKS for word in b.needs if word not in REASONS]
    odd += [f"{b}: commands are `console`" for b in BLOCKS if b.language == "text" and b.text.startswith(("$", "vgen"))]
    assert not odd, f"{odd}; languages {LANGUAGES}, reasons {list(REASONS)}"
    marks = sum(len(MARK.findall(page.read_text(encoding="utf-8"))) for page in PAGES)
    assert marks == sum(bool(block.needs) for block in BLOCKS), "a mark stands in the line above a block"
    assert len(RUN) > 10


def test_shortened_words_are_in_a_block_that_runs() -> None:
    assert [words for words in SHORTER if not any(words in block.text for block in RUN)] == []


def _fault(words: list[str], exact: bool) -> str:
    """What the command line of `vgen` has against these words; `exact`: values count too, not only names of options."""
    from vgen.cli import app

    command: Any = typer.main.get_command(app)
    context = command.make_context("vgen", [], resilient_parsing=True)
    while hasattr(command, "get_command") and words and not words[0].startswith("-"):
        child = command.get_command(context, words[0])
        if child is None:
            return f"`{context.command_path}` has no command {words[0]!r}"
        context = type(context)(child, info_name=words[0], parent=context)
        command, words = child, words[1:]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    known |= {"--help", "-h"}
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known]
    if unknown:
        return f"`{context.command_path}` has no {', '.join(unknown)}"
    if exact:
        try:
            _, left, _ = command.make_parser(context).parse_args(list(words))
        except Exception as error:
            return str(error)
        return f"`{context.command_path}` takes no {left}" if left else ""
    return ""


def _after_vgen(words: list[str]) -> list[str] | None:
    """The words after `vgen` (`taskset -c 0 vgen bench`, `torchrun -m vgen train`), or None: not such a command."""
    return words[words.index("vgen") + 1 :] if "vgen" in words[:8] else None


def test_commands_in_blocks_exist() -> None:
    faults = []
    for block in BLOCKS:
        for words in _commands(block, block.text):
            after = _after_vgen(words)
            if after is not None and (fault := _fault(after, exact=True)):
                faults.append(f"{block}: {fault}")
            scripts = [word for word in words if re.fullmatch(r"docs/[\w/]+\.py", word)]
            faults += [f"{block}: there is no {script}" for script in scripts if not (ROOT / script).exists()]
    assert faults == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_the_text_exist(page: Path) -> None:
    """`vgen ...` in sentences and tables, where alternatives are a|b and what is optional stands in brackets."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    faults = []
    for span in re.findall(r"`vgen ([^`]+)`", prose):
        words = shlex.split(re.sub(r"[\[\]]|\.\.\.", " ", span.replace("\\|", "|")).replace("'", ""))
        if words and (fault := _fault(words, exact=False)):
            faults.append(f"vgen {span}: {fault}")
    assert faults == []


def test_marked_python_imports_what_there_is() -> None:
    faults = []
    for block in BLOCKS:
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text, str(block))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vgen":
                module = importlib.import_module(str(node.module))
                faults += [f"{block}: {node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)]
    assert faults == []


# --- The blocks that run.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: a clone's recipes and scripts, and files by the names that the pages use."""
    for name in ("configs", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs" / "scripts", tmp_path / "docs" / "scripts")
    frames = np.zeros((17, 64, 64, 3), np.uint8)
    for index in range(17):
        frames[index, 24:40, 40 - 2 * index : 56 - 2 * index, 0] = 255
    (tmp_path / "all_dimension.txt").write_text("a red circle moves to the left\n")
    write_video(tmp_path / "clip.mp4", frames, 8.0, {}, False)
    Image.fromarray(frames[0]).save(tmp_path / "first.png")
    Image.fromarray(frames[-1]).save(tmp_path / "last.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))  # a name is looked for in it, and not found

    def refused(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a connection is opened; README and SECURITY say that running needs no network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


def _run_elsewhere(words: list[str]) -> None:
    """python and torchrun, each in a process of its own."""
    starts = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
    assert words[0] in starts, f"{words[0]} cannot be run here: mark the block with what it needs"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PET_STANDALONE"] = "1"  # torchrun takes a free port, since other tests start it too
    run = subprocess.run([*starts[words[0]], *words[1:]], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


LONG = ("docs/fine_tuning.md", "docs/parallel.md")  # they start several processes


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page in LONG)) for page in sorted({block.page for block in RUN})],
)
def test_blocks_run(page: str, folder: Path, run_cli: Callable[..., Any]) -> None:
    blocks = [block for block in BLOCKS if block.page == page and not block.needs]
    for block in blocks:
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        text = block.text
        for words, shorter in SHORTER.items():
            text = text.replace(words, shorter)
        if block.file:
            continue
        if block.language == "python":
            # The lines of the page, so that a traceback shows where the fault stands.
            exec(compile("\n" * block.line + text, str(ROOT / page), "exec"), namespace)
        printed = [expected for _, expected in _session(text)] if block.language == "console" else []
        for number, command in enumerate(_commands(block, text)):
            if command[0] != "vgen":
                _run_elsewhere(command)
                continue
            done = run_cli(*command[1:])
            said = " ".join((done.out + done.err).split())
            if printed:
                assert re.search(_pattern(printed[number]), said), f"{block}: {shlex.join(command)}\n{said}"
            else:
                assert done.code == 0, f"{block}: {shlex.join(command)}\n{said}"


def _pattern(printed: str) -> str:
    """Finds this in what a command prints: blanks and line ends count alike, and any number is right."""
    return re.sub(r"\d+(\\\.\d+)?", r"\\d+(?:\\.\\d+)?", re.escape(" ".join(printed.split())))
