"""`vgen bench` as a user runs it, with tiny shapes on a CPU."""

import json
import sys

import pytest
import torch
from PIL import Image

from vgen.bench.arms import make_arms
from vgen.bench.build import build, peer_components
from vgen.bench.lossy import LOSSY, error_of, reference_of
from vgen.bench.parity import ParityError, check_parity
from vgen.bench.report import plot
from vgen.bench.scenarios import ARCHITECTURES, scenario_named
from vgen.cli import main
from vgen.engine.speed import autotune
from vgen.engine.speed.tuning_store import TuningStore, shared_store
from vgen.errors import RequestError

CPU = torch.device("cpu")


def _vgen(*words):
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    return leaving.value.code


@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "report.json"
    words = ["bench", "--scenario", "cpu-tiny", "--rounds", 1, "--device", "cpu", "-o", file]
    assert _vgen(*words, "--against", "diffusers", "--against", "plain") == 0
    return file


def test_the_report_says_what_was_measured(report_file):
    report = json.loads(report_file.read_text())
    assert list(report["arms"]) == ["vgen", "diffusers", "plain"]
    for arm in report["arms"].values():
        assert set(arm["stages"]) == {"text_encode", "step", "denoise", "decode", "to_host", "end_to_end"}
        assert all(len(stage["seconds"]) == 2 for stage in arm["stages"].values())
        assert arm["attention"] and arm["lossy"] == [] and arm["step_rate"]["flops"] > 1e6
        assert 0 < arm["step_rate"]["mfu_matmul"] < 2 and arm["step_rate"]["mfu_datasheet"] is None
    assert len({arm["weight_bytes"] for arm in report["arms"].values()}) == 1
    clip = 17 * 64 * 96 * 3 * 4
    assert all(clip < arm["allocated_bytes"] < 100 * clip for arm in report["arms"].values())
    assert report["arms"]["plain"]["parts"] == [] and "hoisting" in report["arms"]["vgen"]["parts"]
    assert set(report["ratios"]) == {"diffusers", "plain"}
    assert set(report["parity"]["stages"]["step"]) == {"vgen", "plain"}
    assert report["machine"]["torch"] == torch.__version__


def test_the_clock_is_chosen_and_told(report_file, tmp_path, capsys):
    assert json.loads(report_file.read_text())["clock"] == "wall"
    words = ["bench", "--scenario", "cpu-tiny", "--rounds", 1, "--device", "cpu", "--stages", "step"]
    words += ["--threads", 1, "--clock"]
    assert _vgen(*words, "sundial") == 2
    assert "clock='sundial' must be wall" in capsys.readouterr().err
    assert _vgen(*words, "process", "-o", tmp_path / "busy.json") == 0
    assert "seconds of the processor" in capsys.readouterr().out
    report = json.loads((tmp_path / "busy.json").read_text())
    assert report["clock"] == "process" and report["arms"]["vgen"]["stages"]["step"]["p50"] > 0


def test_with_no_time_left_there_is_one_round(tmp_path):
    words = ["bench", "--scenario", "cpu-tiny", "--rounds", 7, "--within", 0.1, "--device", "cpu", "--stages", "step"]
    assert _vgen(*words, "-o", tmp_path / "short.json") == 0
    report = json.loads((tmp_path / "short.json").read_text())
    assert report["rounds"] == 1 and len(report["arms"]["vgen"]["stages"]["step"]["seconds"]) == 2
    assert "decode_rate" not in report["arms"]["vgen"]


def test_two_reports_are_compared(report_file, capsys):
    assert _vgen("bench", "compare", report_file, report_file) == 0
    assert "1.000 x" in capsys.readouterr().out


def test_a_report_is_drawn(report_file, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "bench.png"
    plot(json.loads(report_file.read_text()), picture)
    with Image.open(picture) as drawn:
        assert drawn.width > 500 and len(drawn.convert("RGB").getcolors(1 << 20)) > 20


def test_drawing_without_matplotlib_says_what_to_install(report_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RequestError, match=r"vgen\[plot\]"):
        plot(json.loads(report_file.read_text()), tmp_path / "bench.png")


def test_reports_of_different_work_are_not_compared(report_file, tmp_path, capsys):
    report = json.loads(report_file.read_text())
    report["scenario"]["height"] = 128
    other = tmp_path / "other.json"
    other.write_text(json.dumps(report))
    assert _vgen("bench", "compare", report_file, other) == 2
    assert "height 64 and 128" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "warp"], "diffusers"),
        (["--scenario", "warp"], "cpu-50m"),
        (["-o", "report.txt"], ".json"),
        (["--against", "without:warp"], "hoisting"),
        (["compare", "missing.json", "missing.json"], "is missing"),
    ],
)
def test_bad_words_are_input_errors(words, said, capsys):
    words = words if words[0] == "compare" else ["--scenario", "cpu-tiny", "--device", "cpu", *words]
    assert _vgen("bench", *words) == 2
    assert said in capsys.readouterr().err


WAYS = ("int8", "int8-weights", "bfloat16", "first-block:10", "taylorseer:3", "magcache:9", "guidance-interval:0.9,1")


def test_every_lossy_way_is_tried_here():
    assert {way.partition(":")[0] for way in WAYS} == set(LOSSY) - {"fp8"}


@pytest.mark.parametrize("way", WAYS)
def test_lossy_ways_say_so_and_how_wrong_they_are(way):
    """On equal noise. Random weights change too much for a cache: its threshold is raised until it skips."""
    arms = make_arms(scenario_named("cpu-tiny", num_inference_steps=6), (f"lossy:{way}",), CPU, 0)
    assert arms[0].lossy == () and arms[1].lossy == (way,)
    exact = arms[0].stage("denoise")()
    same = error_of(reference_of(arms[0]), arms[0])
    assert same["largest"] == 0 and same["psnr"] == float("inf") and same["other_seed"] > 0.1
    error = error_of(reference_of(arms[0]), arms[1])
    assert 1e-5 < error["relative_rms"] < 2 and 5 < error["psnr"] < 100
    assert torch.equal(exact, arms[0].stage("denoise")())  # the exact arm is not touched by the other


def test_lossy_arms_have_a_table_of_their_own(tmp_path, capsys):
    file = tmp_path / "lossy.json"
    words = ["bench", "--scenario", "cpu-tiny", "--rounds", 1, "--device", "cpu", "--stages", "denoise,end_to_end"]
    assert _vgen(*words, "--against", "lossy:int8", "--against", "lossy:taylorseer:2", "-o", file) == 0
    arms = json.loads(file.read_text())["arms"]
    assert arms["vgen"]["lossy"] == [] and "error" not in arms["vgen"]
    assert arms["lossy:int8"]["lossy"] == ["int8"] and 0 < arms["lossy:int8"]["error"]["relative_rms"] < 0.2
    assert "LOSSY: error against the exact clips" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["first-block:-1", "int8:3", "guidance-interval:1", "fp8"])
def test_a_lossy_way_that_cannot_be_had_is_refused(way):
    with pytest.raises(RequestError, match=r"use"):
        make_arms(scenario_named("cpu-tiny"), (f"lossy:{way}",), CPU, 0)


def test_unequal_results_are_not_timed():
    arms = make_arms(scenario_named("cpu-tiny"), ("diffusers",), CPU, 0)
    peer = arms[1].pipeline.transformer
    with torch.no_grad():
        peer.proj_out.bias = torch.nn.Parameter(peer.proj_out.bias + 1e-3)
    with pytest.raises(ParityError, match="differ by 1"):
        check_parity(arms)


def test_half_precision_is_judged_by_the_error_against_float32():
    arms = make_arms(scenario_named("cpu-tiny", dtype="bfloat16"), ("diffusers",), CPU, 0)
    errors = check_parity(arms)["stages"]["step"]
    assert 1e-4 < errors["vgen"] <= 1.1 * errors["diffusers"]
    assert arms[1].pipeline.transformer.dtype == torch.bfloat16  # as it was


def test_the_peer_shares_our_weights():
    ours = build(scenario_named("cpu-tiny"), CPU)
    theirs = peer_components(ours)
    assert theirs.transformer.proj_in.weight.data_ptr() == ours.transformer.proj_in.weight.data_ptr()
    assert all(parameter.any() for parameter in ours.transformer.parameters())


@pytest.mark.parametrize(("name", "billions"), [("ltx-2b", 1.923), ("ltx-13b", 13.04)])
def test_the_public_sizes_are_those_of_the_public_models(name, billions):
    from vgen.models import CausalVideoVAE, VideoDiT

    with torch.device("meta"):
        transformer = VideoDiT(**ARCHITECTURES[name].transformer)
        CausalVideoVAE(**ARCHITECTURES[name].vae)
    assert sum(weight.numel() for weight in transformer.parameters()) / 1e9 == pytest.approx(billions, rel=1e-3)


def test_tuning_measures_once_and_is_remembered(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VGEN_CACHE", str(tmp_path))
    shared_store.cache_clear()
    words = ("bench", "--tune", "--scenario", "cpu-tiny", "--device", "cpu")
    assert _vgen(*words) == 0
    told = capsys.readouterr().out
    assert "_native_math" in told and "2 x 2 x 12" in told
    entries = json.loads((tmp_path / "autotune.json").read_text())["entries"]
    assert len(entries) == 3  # self-attention, and cross-attention to two lengths of text
    for entry in entries.values():
        assert set(entry["seconds"]) == {"native", "_native_math"} and entry["choice"] in entry["seconds"]
    shared_store.cache_clear()  # as in another process
    monkeypatch.setattr(autotune, "measure_attention", lambda *_: pytest.fail("measured again"))
    assert _vgen(*words) == 0
    shared_store.cache_clear()


def test_combinations_are_measured_and_followed(tmp_path, monkeypatch):
    from vgen.bench import tune as tuning

    monkeypatch.setattr(tuning, "compile_blocks", lambda dit: dit.compile_repeated_blocks(backend="eager"))
    store = TuningStore(tmp_path / "autotune.json")
    found = tuning.tune(scenario_named("cpu-tiny"), device=CPU, rounds=1, combinations=True, store=store)
    (key,) = [key for key in found if key.startswith("step")]
    assert set(found[key].seconds) == {"eager", "compiled"}
    assert TuningStore(store.path).get(key) == found[key]
    assert tuning.table(found).row_count == 4
