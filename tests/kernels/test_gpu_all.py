"""The one command for a GPU machine, rehearsed: its stages, what they keep, how they go on, and what a result file is worth."""

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from attention_loom.bench import architectures, checks, decay, end_to_end, goals, gpu_all, host, measure, report, results, specialised, stages, variants
from attention_loom.bench.provenance import kernels_sha256
from attention_loom.bench.results import Results
from attention_loom.kernels.triton import launch

ROOT = Path(__file__).resolve().parents[2]


def kept(folder) -> dict:
    return json.loads((folder / gpu_all.FILE).read_text())


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.interpreter
def test_a_rehearsal_runs_the_kernel_stages_and_keeps_their_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checks, "TINY", checks.Size(64, 1, 32, (32,), (torch.float16,)))
    wanted = ["specialised", "overhead", "decay", "settings", "kernels"]
    assert gpu_all.main(["--dry", "--out", str(tmp_path), *(x for name in wanted for x in ("--only", name))]) == 0
    found = kept(tmp_path)
    assert {name: s["state"] for name, s in found["stages"].items()} == dict.fromkeys(wanted, "done")
    assert {r["way"] for r in found["tables"]["decay"]} == {*decay.WAYS, *decay.ROLES}
    errors = [r["rel_l2_to_loom"] for r in found["tables"]["decay"] if r["decay"]]
    assert max(errors) < 2e-3, "our kernel, FlexAttention and plain torch compute the same decay"
    assert all(r["rel_l2_to_shipped"] == 0 for r in found["tables"]["settings"]), "variants differ from the shipped settings"
    assert {tuple(r["settings"])[-1] for r in found["tables"]["settings"]} > {"plain"}
    assert {r["impl"] for r in found["rows"]} >= {"loom", "loom: backward", "sdpa math", "loom, specialised"}
    assert all(r["ms"] is None for r in found["rows"])
    assert "ms" not in json.dumps(found["tables"]["decay"]), "a rehearsal times nothing"
    assert (tmp_path / "summary.md").read_text().startswith("# GPU session\n\nAll checks that ran are within their limits.")

    capsys.readouterr()
    gpu_all.main(["--dry", "--out", str(tmp_path), "--only", "overhead", "--only", "decay"])
    assert "overhead: done before" in (said := capsys.readouterr().out)
    assert "tiny-clip" not in said
    assert kept(tmp_path)["tables"] == found["tables"]


@pytest.mark.host
def test_a_rehearsal_runs_the_host_with_and_without_a_pattern(tmp_path):
    """In a process of its own: the command brings its own host and must not find ours."""
    if not (host.host_dir() / "comfy").is_dir():
        pytest.skip("no ComfyUI; run `make setup` or set COMFYUI_DIR")
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu_all.py"), "--dry", "--out", str(tmp_path), "--only", "model flux-2048", "--only", "model wan1.3b-480p-3x"],
        capture_output=True, text=True, cwd=tmp_path, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {r["name"]: r for r in kept(tmp_path)["tables"]["models"]}
    assert set(rows) == {"flux-2048: stock", "flux-2048: sla_topk", "wan1.3b-480p-3x: stock", "wan1.3b-480p-3x: ultravico"}
    assert not any("failed" in r for r in rows.values()), rows
    assert all(r["finite"] for r in rows.values())
    assert rows["flux-2048: sla_topk"]["calls"]["triton"] > 0
    assert rows["wan1.3b-480p-3x: ultravico"]["calls"]["triton"] > 0
    assert "step_s" not in rows["flux-2048: stock"]


def test_without_a_gpu_nothing_is_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu_all.main(["--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().out == "not measured: no CUDA GPU\n"
    assert not (tmp_path / "none").exists()


def test_a_stage_nobody_knows_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu_all.main(["--dry", "--only", "kernel"]) == 2
    assert "no stage kernel" in capsys.readouterr().out
    assert gpu_all.main(["--dry", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(s.name in listed for s in stages.STAGES)


def test_a_stage_that_crashes_or_hangs_costs_its_own_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_all, "GRACE", 0.0)
    answers = {"crash": [sys.executable, "-c", "import os; os._exit(139)"], "hang": [sys.executable, "-c", "import time; time.sleep(60)"]}
    inner = subprocess.run
    monkeypatch.setattr(gpu_all.subprocess, "run", lambda command, **more: inner(answers[command[command.index("--stage") + 1]], **more))
    assert gpu_all._child("crash", tmp_path, 30.0) == "failed: the process ended with status 139"
    began = time.monotonic()
    assert gpu_all._child("hang", tmp_path, 1.0).startswith("killed")
    assert time.monotonic() - began < 30


# --- numbers --------------------------------------------------------------------------------------------------------------


def test_checks_are_kept_and_a_broken_one_is_said(tmp_path, monkeypatch):
    calls = []

    def some(size, device):
        yield "good", lambda: iter([checks.Finding("fine", 0.5, 1.0)])
        yield "bad", lambda: calls.append("bad") or iter([checks.Finding("off", 2.0, 1.0)])
        yield "failing", lambda: (_ for _ in ()).throw(RuntimeError("no launch"))

    monkeypatch.setattr(checks, "all_checks", some)
    stage = next(s for s in stages.STAGES if s.name == "numerics")
    path = tmp_path / gpu_all.FILE
    for _ in range(2):  # the second run finds everything done
        stages.run(stage, path, 60.0, dry=True)
    assert calls == ["bad"]
    found = results.Results.resume(path)
    assert stages.problems(found) == ["bad: off: 2, the limit is 1", "failing: RuntimeError: no launch"]
    stages.summarise(found, tmp_path)
    assert "- bad: off: 2, the limit is 1" in (tmp_path / "summary.md").read_text()
    stages.forget(found, "numerics")
    assert stages.problems(found) == []


def test_results_go_on_only_for_the_same_kernels_and_machine(tmp_path):
    path = tmp_path / "gpu_all.json"
    run = results.Results.resume(path)
    run.put("overhead", name="a", share=0.1)
    run.put("overhead", name="a", share=0.123456789)
    run.add(results.Row("loom", "x", "random", 0.5, ms=1.0), wanted_density=0.5)
    run.stages["overhead"] = {"state": "done"}
    run.write()
    again = results.Results.resume(path)
    assert again.document() == run.document()
    assert again.tables["overhead"] == [{"name": "a", "share": 0.12346}]
    document = json.loads(path.read_text())
    for change in ({"kernels_sha256": "0" * 64}, {"device": "another"}, {"versions": {}}):
        path.write_text(json.dumps(document | change))
        fresh = results.Results.resume(path)
        assert fresh.rows == []
        assert fresh.stages == {}
        assert json.loads(path.with_suffix(".old.json").read_text()) == document | change
    path.write_text("{half a")
    assert results.Results.resume(path).rows == []


def test_long_calls_are_repeated_less_often():
    assert measure.SHORT.fitting(1.0) == measure.Protocol(25, 100, 2.0)
    long = measure.SHORT.fitting(200.0)
    assert (long.warm, long.timed) == (2, 8)
    assert measure.SHORT.fitting(5000.0).timed == measure.LEAST_TIMED
    assert measure.FULL.fitting(5000.0).timed == 100


# --- goals ----------------------------------------------------------------------------------------------------------------


def document(**times) -> dict:
    """A file with made-up times, to see the verdicts by."""
    rows = [
        {"impl": impl, "shape": "s", "pattern": pattern, "density": density, "ms": ms, "speedup": 10.0 / ms, "efficiency": 10.0 / ms * density}
        for (impl, pattern, density), ms in times["rows"].items()
    ]
    details = [{"wanted_density": r["density"]} for r in rows]
    decay = [{"name": f"c: {way}", "shape": "c", "way": way, "ms": ms} for way, ms in times.get("decay", {}).items()]
    return {"rows": rows, "details": details, "tables": {"decay": decay, "overhead": times.get("overhead", [])}, "stages": {"kernels": {}}}


def test_goals_are_read_from_the_rows():
    found = goals.verdicts(
        document(
            rows={("loom", "dense", 1.0): 12.5, ("loom", "random", 0.1): 1.25, ("flex", "random", 0.1): 1.5, ("loom: backward", "random", 0.1): 2.0},
            decay={"loom": 1.04, "loom, no decay": 1.0, "flex, score_mod": 2.0},
            overhead=[{"name": "o", "tokens": 40_000, "share": 0.06}, {"name": "short", "tokens": 4_000, "share": 0.5}],
        )
    )
    by_goal = {v.goal: v for v in found}
    assert len(found) == len(by_goal) == 7, "short sequences have no goal for lists"
    states = [(round(v.found, 3), v.met) for v in found]
    assert states == [(0.8, True), (8.0, True), (1.2, False), (1.04, True), (1.923, True), (0.5, True), (0.06, False)]


def test_a_goal_without_rows_is_not_measured_and_never_met():
    found = goals.verdicts({"rows": [], "details": [], "tables": {}})
    assert len(found) == 7
    assert all(v.met is None for v in found)


def test_predicted_speed_up():
    assert end_to_end.predicted(0.5, 2.0) == pytest.approx(1 / 0.75)
    assert end_to_end.predicted(0.8, 4.0, 0.25) == pytest.approx(1 / (0.2 + 0.8 * (0.25 + 0.75 / 4)))
    row = end_to_end.compared({"step_s": 6.0, "attention_s": 2.0}, {"step_s": 10.0, "attention_s": 6.0}, None)
    assert row["speedup"] == pytest.approx(10 / 6)
    assert row["predicted"] == pytest.approx(10 / 6), "what attention saved is all that was saved here"
    assert row["attention_speedup"] == 3


# --- models ---------------------------------------------------------------------------------------------------------------


def test_full_size_models_are_those_of_the_shapes():
    from attention_loom.bench.decay import CLIPS
    from attention_loom.bench.shapes import SHAPES

    shapes = {s.name: s for s in (*SHAPES, *(c.shape for c in CLIPS))}
    for a in architectures.ARCHITECTURES:
        s = shapes[a.shape]
        *_, y, x = a.latent
        frames = a.latent[2] if len(a.latent) == 5 else 1
        assert s.grid == (frames, y // 2, x // 2), a.name
        if "num_heads" in a.unet:
            assert s.heads == a.unet["num_heads"], a.name
        tiny = a.tiny()
        assert tiny.config == a.config
        assert tiny.latent[1] == a.latent[1]


def test_an_absent_package_says_so_when_it_is_used(monkeypatch):
    monkeypatch.setattr(host, "_absent", lambda: frozenset({"torchsde_not_here"}))
    monkeypatch.setattr(sys, "meta_path", [host._Finder(), *sys.meta_path])
    import torchsde_not_here.noise as noise

    class Tree(noise.BrownianTree):
        pass

    with pytest.raises(host.HostMissing, match=r"torchsde_not_here.noise.BrownianTree was called"):
        noise.BrownianTree(1)
    with pytest.raises(host.HostMissing):
        Tree()
    for name in [n for n in sys.modules if n.startswith("torchsde_not_here")]:
        del sys.modules[name]


# --- variants -------------------------------------------------------------------------------------------------------------


def test_candidates_are_named_apart():
    from attention_loom.kernels.triton.candidates import candidates
    from attention_loom.kernels.triton.tuning import MOST_CANDIDATES

    found = candidates("sm_90", 128, 2)
    assert len({variants.label(s) for s in found}) == len(found) <= MOST_CANDIDATES
    assert {s.variant for s in found} == {"plain", "ahead", "engine", "engine ahead", "specialised", "specialised persistent"}
    assert {s.variant for s in candidates("sm_80", 128, 2)} == {"plain"}


# --- the kernel with roles ------------------------------------------------------------------------------------------------


def test_a_kernel_that_is_not_sound_is_left_out_elsewhere(tmp_path):
    found = Results.resume(tmp_path / gpu_all.FILE)
    assert not specialised.sound(found), "its stage has not run"
    found.stages[specialised.STAGE] = {"state": "done"}
    assert not specialised.sound(found), "its stage checked nothing"
    found.put("checks", name=f"{specialised.STAGE}: one", ok=True, value=0, limit=1)
    assert specialised.sound(found)
    s = stages.Session(found, tmp_path, float("inf"), True)
    assert stages.ROLES in [i.name for i in stages._ours(s)]
    found.put("checks", name=f"{specialised.STAGE}: two", ok=False, value=2, limit=1)
    assert stages.ROLES not in [i.name for i in stages._ours(s)]
    found.tables["checks"].pop()
    for state in ("out of time", "killed: it did not stop when its time was up"):
        found.stages[specialised.STAGE] = {"state": state}
        assert not specialised.sound(found)


@pytest.mark.interpreter
def test_the_checks_of_the_kernel_notice_that_another_one_ran():
    """As here, where nothing has Hopper's instruction and the settings fall back."""
    whole = checks.Size(64, 1, 64, (64,), (torch.float16,))
    before = launch.launch_specialised
    found = list(specialised._with(specialised.TRIED[0], lambda: checks.numerics(whole, "cpu", torch.float16, 64), "cuda"))
    assert [f.name for f in found if not f.ok] == ["another kernel was launched instead"]
    assert launch.launch_specialised is before


# --- results that are kept ------------------------------------------------------------------------------------------------


def result_files() -> list[Path]:
    return sorted((ROOT / "bench" / "results").glob("*.json"))


def unmarked(file: Path, page: str) -> str | None:
    """What is wrong with a kept result: it is of other kernels than those of this tree and the page does not say so."""
    found = json.loads(file.read_text())
    if found["kernels_sha256"] == kernels_sha256():
        return None
    heading = f"### {found['device']}, {found['date'][:10]}"
    section = page.split(heading, 1)[1].split("\n### ", 1)[0] if heading in page else ""
    return None if "**The kernels have changed since**" in section else f"{file.name} is older than the kernels and docs/performance.md does not say so"


def test_kept_results_of_older_kernels_are_marked():
    page = report.PAGE.read_text(encoding="utf8")
    for file in result_files():
        if json.loads(file.read_text())["kernels_sha256"] != kernels_sha256():
            warnings.warn(f"{file.name} was measured with older kernels: measure again", stacklevel=1)
    assert [said for file in result_files() if (said := unmarked(file, page))] == [], "python -m attention_loom.bench.report FILE --write"


def test_an_unmarked_old_result_is_noticed(tmp_path):
    run = results.Results.begin(tmp_path)
    run.add(results.Row("loom", "x", "random", 0.5, ms=1.0), wanted_density=0.5)
    page = report.section(run.document())
    assert unmarked(run.path, page) is None
    old = run.document() | {"kernels_sha256": "0" * 64}
    run.path.write_text(json.dumps(old))
    assert "older than the kernels" in unmarked(run.path, page)
    assert unmarked(run.path, report.section(old)) is None


def test_nothing_is_called_fast_that_nobody_measured():
    if result_files():
        return
    page = report.PAGE.read_text(encoding="utf8").split(report.BEGIN)[1].split(report.END)[0]
    assert page.strip() == "Not measured."


def test_a_result_is_kept_under_its_name(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    run = results.Results.resume(tmp_path / "gpu_all.json")
    run.write()
    path = report.keep(run.path, run.document(), folder)
    assert path.name == run.file_name
    assert path.read_text() == run.path.read_text()
    assert report.keep(path, run.document(), folder) == path
