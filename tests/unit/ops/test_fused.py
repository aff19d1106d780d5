"""Every fused operation gives what its plain reference gives: compiled C, torch's operators, gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vgen import ops
from vgen.errors import RequestError
from vgen.ops import compiling, cuda, native, reference, switches

TOLERANCE = {"atol": 2e-6, "rtol": 2e-6}
needs_compiler = pytest.mark.skipif(not native.available(), reason="no C compiler here")


def _random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _modulation(rows: int, size: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """Six vectors as a block makes them: views of one tensor, per sample or per token."""
    return _random(batch, rows, 6, size, seed=9).unbind(dim=2)


def _norm_cases():
    for size in (24, 37, 512):
        for rows in (1, 5):
            shift, scale, gate, *_ = _modulation(rows, size)
            hidden, branch, weight = _random(2, 5, size), _random(2, 5, size, seed=1), _random(size, seed=2)
            yield hidden, None, None, None, shift, scale, 1e-6
            yield hidden, branch, gate, None, shift, scale, 1e-6
            yield hidden, branch, None, weight, shift, scale, 1e-5
    one = _modulation(1, 24, batch=1)
    yield _random(2, 5, 24), None, None, None, one[0], one[1], 1e-6
    for other in (_modulation(1, 24), _modulation(5, 24)):  # one shift for all, a scale for each
        yield _random(2, 5, 24), None, None, None, one[0], other[1], 1e-6


def _rotation_cases():
    for size in (24, 512, 38):
        angles = _random(1, 5, size // 2, seed=3)
        by_sample = _random(2, 5, size // 2, seed=4)
        weight = _random(size, seed=2)
        yield _random(2, 5, size), weight, None, None, 1e-5
        yield _random(2, 5, size), weight, angles.cos(), angles.sin(), 1e-5
        yield _random(2, 5, 3 * size).chunk(3, dim=-1)[1], weight, by_sample.cos(), by_sample.sin(), 1e-5


def _pixel_cases():
    for size in (3, 16, 32, 100):
        clip = _random(2, size, 4, 3, 5) * 3
        shift, scale = _random(2, size, 1, 1, 1, seed=5), _random(2, size, 1, 1, 1, seed=6)
        yield clip, None, None, 2, 0, 1e-8
        yield clip.contiguous(memory_format=torch.channels_last_3d), shift, scale, 1, 1, 1e-8
        yield clip[:, :, :1], shift[:1], scale[:1], 0, 0, 1e-8
    yield (
        torch.full((1, 4, 2, 2, 2), 60.0) * torch.tensor([1.0, -1, 2, -2])[None, :, None, None, None],
        None,
        None,
        0,
        1,
        1e-8,
    )


CASES = {
    "residual_norm_modulate": list(_norm_cases()),
    "norm_rotate": list(_rotation_cases()),
    "pixel_norm_silu": list(_pixel_cases()),
}
ALL = [pytest.param(name, case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)]


def _close(found, expected):
    found, expected = (value if isinstance(value, tuple) else (value,) for value in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, **TOLERANCE)


@needs_compiler
@pytest.mark.parametrize(("name", "case"), ALL)
def test_compiled_c_equals_the_reference(name, case):
    with torch.no_grad():
        assert native.usable(*(value for value in case if isinstance(value, torch.Tensor)))
        _close(getattr(native, name)(*case), getattr(reference, name)(*case))


@pytest.mark.parametrize(("name", "case"), ALL)
def test_the_public_operation_equals_the_reference_with_and_without_gradients(name, case, monkeypatch):
    monkeypatch.setattr(ops, "_WORTH_A_CALL", 0)
    with torch.no_grad():
        quick = getattr(ops, name)(*case)
    _close(quick, getattr(reference, name)(*case))
    exact = getattr(ops, name)(*case)
    for one, other in zip(
        *(v if isinstance(v, tuple) else (v,) for v in (exact, getattr(reference, name)(*case))), strict=True
    ):
        assert torch.equal(one, other)  # training computes what it always did, bit for bit


@needs_compiler
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("skip", [0, 1])
def test_depth_to_space_is_the_same_to_the_bit(stride, skip):
    deep = _random(2, 3 * stride[0] * stride[1] * stride[2], 3, 2, 5)
    with torch.no_grad():
        assert torch.equal(native.depth_to_space(deep, stride, skip), reference.depth_to_space(deep, stride, skip))


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_in_the_epilogue(approximate):
    hidden, weight, bias = _random(2, 7, 24), _random(40, 24, seed=1), _random(40, seed=2)
    with torch.no_grad():
        found = ops.linear_gelu(hidden, weight, bias, approximate)
    torch.testing.assert_close(
        found, F.gelu(F.linear(hidden, weight, bias), approximate=approximate), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_direct_convolution(kernel, stride, layout):
    clip = _random(1, 8, 5, 6, 7).contiguous(memory_format=layout)
    weight, bias, padding = _random(16, 8, *(kernel,) * 3, seed=1), _random(16, seed=2), (0, kernel // 2, kernel // 2)
    with torch.no_grad():
        found = ops.conv3d(clip, weight, bias, stride, padding)
    torch.testing.assert_close(found, F.conv3d(clip, weight, bias, stride, padding), atol=5e-5, rtol=1e-5)


def _operators():
    hidden, branch, weight = (
        _random(
            2,
            5,
            24,
            seed=s,
        ).double()
        for s in (0, 1, 2)
    )
    shift, scale, gate = (value.double() for value in _modulation(1, 24)[:3])
    angles = _random(1, 5, 12, seed=3)
    clip = _random(1, 4, 3, 2, 2).double()
    vectors = [_random(1, 4, 1, 1, 1, seed=s).double() for s in (5, 6)]
    weight = weight[0, 0]
    return [
        (torch.ops.vgen.residual_norm_modulate, (hidden, branch, gate, weight, shift, scale, 1e-6)),
        (torch.ops.vgen.residual_norm_modulate, (hidden, branch, None, None, shift, scale, 1e-6)),
        (torch.ops.vgen.norm_modulate, (hidden, None, shift, scale, 1e-6)),
        (torch.ops.vgen.norm_rotate, (hidden.float(), weight.float(), angles.cos(), angles.sin(), 1e-5)),
        (torch.ops.vgen.pixel_norm_silu, (clip, *vectors, 2, 1, 1e-8)),
    ]


PLAIN = [
    reference.residual_norm_modulate,
    reference.residual_norm_modulate,
    lambda hidden, *rest: reference.residual_norm_modulate(hidden, None, None, *rest)[1],
    reference.norm_rotate,
    reference.pixel_norm_silu,
]


@pytest.mark.parametrize("index", range(5))
def test_operators_are_sound(index):
    """torch's own checks: schema, shapes without content, gradients registered."""
    operator, arguments = _operators()[index]
    arguments = tuple(v.clone().requires_grad_() if isinstance(v, torch.Tensor) else v for v in arguments)
    torch.library.opcheck(
        operator.default, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )


@pytest.mark.parametrize("index", range(5))
def test_gradients_of_the_operators(index):
    """Every input gets the gradient that the plain form gives it, in its own place."""
    operator, arguments = _operators()[index]
    plain = PLAIN[index]
    inputs = [tuple(v.clone().requires_grad_() if isinstance(v, torch.Tensor) else v for v in arguments) for _ in "ab"]
    gradients = []
    for function, given in zip((operator, plain), inputs, strict=True):
        results = function(*given)
        results = results if isinstance(results, tuple) else (results,)
        sum((result * _random(*result.shape, seed=7 + i)).sum() for i, result in enumerate(results)).backward()
        gradients.append([value.grad for value in given if isinstance(value, torch.Tensor)])
    for ours, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(ours, expected)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernels_equal_the_references_under_the_interpreter():
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    program = Path(__file__).with_name("triton_check.py")
    run = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, env=_interpreting(), timeout=500
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout.split()[-1]) == sum(map(len, CASES.values())) * 2


def _interpreting():
    return {**os.environ, "TRITON_INTERPRET": "1"}


def test_parts_are_turned_off_and_on_again():
    assert switches.enabled("native")
    with switches.without("native"), torch.no_grad():
        assert not native.usable(_random(2, 3, 4))
        with switches.without("hoisting"):
            assert not switches.enabled("hoisting") and not switches.enabled("native")
        assert switches.enabled("hoisting")
    assert switches.enabled("native")
    with switches.without("all"):
        assert not any(map(switches.enabled, switches.PARTS))
    with pytest.raises(RequestError, match="hoisting"), switches.without("warp"):
        pass


def test_compiled_code_is_not_loaded_from_a_folder_of_others(tmp_path, monkeypatch):
    folder = tmp_path / "vgen" / "native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.delenv("VGEN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiling.library.cache_clear()
    try:
        assert compiling.library() is None
    finally:
        compiling.library.cache_clear()


def test_nothing_compiled_is_used_without_a_compiler(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    compiling.library.cache_clear()
    try:
        assert compiling.library() is None
    finally:
        compiling.library.cache_clear()


def test_triton_is_not_asked_for_a_cpu():
    assert not cuda.usable(_random(1, 2, 4))
