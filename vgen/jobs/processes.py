"""The command on several processes, as torchrun starts them: who writes, who speaks, and how one failure ends all.

Without torchrun's environment there is one process; nothing here then does anything, and torch is not imported.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from vgen.errors import RequestError, VgenError
from vgen.request.process_grid import Layout, choose_layout

if TYPE_CHECKING:
    from vgen.request.request import ResolvedRequest

_NEEDED: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FAILED: Final = "vgen/failed"
_PATIENCE: Final = timedelta(hours=1)
"""How long a process waits for another one that is neither done nor dead."""
_CONNECTING: Final = threading.Lock()
_MEETINGS: Final = itertools.count()
_GRACE: Final = 5.0
"""Seconds that a process has to leave by itself after another has failed."""


def count() -> int:
    """How many processes make the clip: what torchrun says, 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _NEEDED) else 1


def leads() -> bool:
    """Whether this process is the one that writes and speaks."""
    return count() == 1 or os.environ["RANK"] == "0"


def layout_for(request: ResolvedRequest) -> Layout:
    """The grid of processes that a request asks for."""
    return choose_layout(request.parallel or "auto", count(), request.num_branches)


def check(request: ResolvedRequest) -> None:
    """Refuse what these processes cannot do as asked.

    Raises:
        RequestError: a way to share a clip with nobody to share it with, or see `choose_layout`.
    """
    if count() > 1:
        layout_for(request)
    elif request.parallel not in (None, "auto"):
        raise RequestError(
            f"parallel={request.parallel!r} needs several processes, and this is one: start them with "
            "torchrun --nproc-per-node 2 -m vgen, or leave it out."
        )


def place(asked: str) -> str:
    """The device of this process: a GPU of its own if there are GPUs for "auto".

    Raises:
        RequestError: a single device was asked for, or there are fewer GPUs on this machine than processes.
    """
    import torch

    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if asked not in ("auto", "cuda"):
        raise RequestError(
            f"device={asked!r} is one device for {count()} processes: leave it out, and each takes a GPU of its own; "
            "or use cpu."
        )
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > gpus:
        raise RequestError(
            f"{here} processes were started on a machine with {gpus} GPUs: start at most {gpus} (--nproc-per-node), "
            "or use --device cpu."
            if gpus
            else f"device={asked!r} is not on this machine: there is no CUDA device; use cpu."
        )
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def spread(pipe: Any, request: ResolvedRequest) -> None:
    """Let a loaded pipeline share its calls with the other processes."""
    from vgen.engine.processes import parallel

    _meet()
    parallel.spread(pipe, layout_for(request))


def agree(number: int) -> int:
    """The first process's number; every process calls this."""
    if count() == 1:
        return number
    import torch
    import torch.distributed as dist

    _meet()
    shared = torch.tensor([number])
    dist.broadcast(shared, src=0)
    return int(shared)


def wait_for_all() -> None:
    """Return when every process has come here."""
    agree(0)


@functools.cache
def _connect() -> Any:
    from torch.distributed import PrefixStore, rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore("vgen", store)


def _store() -> Any:
    """What all processes can read and write, even when one of them no longer answers."""
    with _CONNECTING:
        return _connect()


def _meet() -> None:
    """Form the group, if there is none."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        rank = int(os.environ["RANK"])
        store = dist.PrefixStore(f"group {next(_MEETINGS)}", _store().clone())
        dist.init_process_group(backend, store=store, rank=rank, world_size=count(), timeout=_PATIENCE)


@contextmanager
def together(passing: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Inside, this process works as one of several: all but the first are silent, and one failure ends all.

    Of several failures the first is said, once, by the process that had it. Its exit code is that of the error.

    Args:
        passing: exceptions that are not failures.
    """
    if count() == 1:
        yield
        return
    speaking = sys.stderr
    with contextlib.ExitStack() as stack:
        if not leads():
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(done,), daemon=True)
        watcher.start()
        try:
            yield
        except VgenError as error:
            done.set()
            _fail(f"vgen: {error}", error.exit_code, speaking)
        except KeyboardInterrupt:  # all are interrupted, and one says so
            raise (KeyboardInterrupt if leads() else SystemExit(1)) from None
        except passing:
            raise
        except Exception as error:
            done.set()
            where = f"process {os.environ['RANK']} of {count()}"
            if _is_lost(error):
                _fail(
                    f"vgen: {where} lost another one: it ended without a word, perhaps killed for want of memory. "
                    f"({str(error)[:200]})",
                    1,
                    speaking,
                )
            _fail(f"vgen: {where} failed: {type(error).__name__}: {error}", 1, speaking, error)
        finally:
            done.set()
            watcher.join(_GRACE)  # the interpreter must not end under a thread that is inside torch
        _leave()


def _fail(message: str, code: int, speaking: Any, error: Exception | None = None) -> None:
    """End with `code`; the first process to come here says why, and the others hear of it."""
    first = True
    with contextlib.suppress(Exception):  # no store: then nobody else hears, and all may speak
        first = _store().add(_FAILED, 1) == 1
    if first:
        if error is not None:
            import traceback

            traceback.print_exception(error, file=speaking)
        print(message, file=speaking, flush=True)
    raise SystemExit(code)


def _is_lost(error: Exception) -> bool:
    """Whether an error is that another process no longer answers."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "onnection" in str(error))


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _watch(done: threading.Event) -> None:
    """End this process when another has failed, also where it waits for that one in a library."""
    try:
        store = _store().clone()
        while not done.wait(0.5):
            if store.check([_FAILED]):
                break
        else:
            return
    except Exception:  # the store is gone, and with it the processes that use it
        return
    signal.raise_signal(signal.SIGTERM)
    if not done.wait(_GRACE):
        os._exit(1)
