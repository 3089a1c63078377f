"""The benchmark: the whole code path without times, what it writes, and that it measures nothing without a GPU."""

import dataclasses
import json
import re

import pytest
import torch
from attention_loom.bench import checks, inputs, kernels, masks, measure, provenance, report, results, rivals
from attention_loom.bench.impls import Case, Impl, Unfit, dense_impls, our_impls
from attention_loom.bench.shapes import QUICK, SHAPES, TINY, Shape
from attention_loom.kernels import AttentionPlan, reference_attend

TINY_VIDEO = TINY[0]
COLUMNS = ["impl", "shape", "pattern", "density", "ms", "dense_ms", "speedup", "tflops", "efficiency", "imbalance", "rel_l2", "peak_mb"]


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    asked = ["--only", "tiny-video", "--only", "topk", "--only", "loom", "--only", "loom, int8_qk", "--only", "loom, tail row"]
    assert kernels.main(["--dry", "--out", str(folder), *asked]) == 0
    (path,) = folder.iterdir()
    return json.loads(path.read_text())


def test_without_a_gpu_nothing_is_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().out == "not measured: no CUDA GPU\n"
    assert not list(tmp_path.iterdir())


def test_document_has_the_promised_fields(dry):
    assert list(dry)[:6] == ["device", "driver", "versions", "date", "kernels_sha256", "rows"]
    assert dry["rows"]
    for row in dry["rows"]:
        assert list(row) == COLUMNS
    assert dry["versions"]["torch"] == torch.__version__
    assert re.fullmatch("[0-9a-f]{64}", dry["kernels_sha256"])
    assert len(dry["details"]) == len(dry["rows"])


@pytest.mark.interpreter
def test_dry_rows_have_errors_and_no_times(dry):
    timed = {"ms", "dense_ms", "speedup", "tflops", "efficiency", "peak_mb"}
    assert all(row[name] is None for row in dry["rows"] for name in timed)
    forward = [r for r in dry["rows"] if not r["impl"].endswith("backward")]
    assert all(r["rel_l2"] is not None for r in forward)
    assert all(r["imbalance"] >= 1 for r in forward if r["pattern"] != "dense")
    assert {(r["impl"], r["pattern"]) for r in forward} >= {
        ("sdpa math", "dense"), ("loom", "dense"), ("loom", "topk"), ("loom, int8_qk", "topk"), ("loom, tail row", "topk"),
    }  # fmt: skip
    by_impl = {r["impl"]: (r, d) for r, d in zip(dry["rows"], dry["details"], strict=True) if r["pattern"] == "topk"}
    assert by_impl["loom"][1]["same_mask_rel_l2"] < 1e-3
    assert 1e-3 < by_impl["loom, int8_qk"][1]["same_mask_rel_l2"] < 2e-2
    assert by_impl["loom"][0]["rel_l2"] > 0.05, "a quarter of the blocks cannot be all of the attention"


def test_what_is_not_there_is_named_with_its_reason(dry):
    assert dry["absent"]["sdpa cudnn"] == "it needs a CUDA GPU"
    absent = {i.name: i.missing() for i in rivals.rivals()}
    assert set(absent) == {"flex", "flashinfer bsr", "spargeattn", "natten", "comfy-kitchen na3d", "comfy-kitchen sol_attn"}
    for name in ("flashinfer bsr", "natten"):
        assert absent[name] is None or absent[name].startswith("not importable: ") or absent[name] == "it needs a CUDA GPU"


def test_an_unknown_name_is_refused(capsys):
    assert kernels.main(["--dry", "--only", "tiny-vidoe"]) == 2
    assert "tiny-vidoe" in capsys.readouterr().out


def small_run(tmp_path, *impls, **more) -> kernels.Run:
    run = kernels.Run(results.Results.begin(tmp_path), None, "cpu", torch.float16, (TINY[1],), ("random",), (0.5,), (), tuple(impls))
    return dataclasses.replace(run, **more)


@pytest.mark.interpreter
def test_a_rival_that_fails_costs_its_row_only(tmp_path):
    def broken(case: Case):
        raise RuntimeError("no kernel image\nfor this device")

    def unfit(case: Case):
        raise Unfit("it takes squares only")

    run = small_run(tmp_path, Impl("broken", broken), Impl("unfit", unfit), our_impls()[0])
    kernels.execute(run)
    kept = json.loads(run.results.path.read_text())
    assert "loom" in {r["impl"] for r in kept["rows"] if r["pattern"] == "random"}
    assert kept["absent"]["broken: tiny-image random 0.5"] == "RuntimeError: no kernel image"
    assert kept["absent"]["unfit: tiny-image random 0.5"] == "it takes squares only"


@pytest.mark.interpreter
def test_rows_survive_a_run_that_is_stopped(tmp_path):
    def stop(case: Case):
        raise KeyboardInterrupt

    run = small_run(tmp_path, our_impls()[0], Impl("stop", stop))
    with pytest.raises(KeyboardInterrupt):
        kernels.execute(run)
    assert json.loads(run.results.path.read_text())["rows"][-1]["impl"] == "loom"
    assert [p.suffix for p in tmp_path.iterdir()] == [".json"]


def test_no_row_is_begun_after_the_budget(tmp_path):
    run = small_run(tmp_path, our_impls()[0], until=0.0)
    kernels.execute(run)
    assert run.results.rows == []


def test_a_row_is_derived_from_its_times(tmp_path):
    run = small_run(tmp_path)
    case = Case(TINY[1], "random", 0.5, *inputs.random(TINY[1], torch.float32, "cpu"))
    case = dataclasses.replace(case, mask=masks.make("random", 0.5, TINY[1], case.q, case.k))
    rows = measure.sampled_rows(TINY[1].count, "cpu")
    exact = measure.exact_rows(case.q, case.k, case.v, rows, case.scale)
    truth = kernels.Truth(rows, exact, exact)
    kernels._keep(run, kernels.Measured(our_impls()[0], exact * 1.5, 2.0, 3.0, 7.0), case, 5.0, truth, backward=False)
    row = run.results.rows[0]
    assert row.speedup == 2.5
    assert row.efficiency == pytest.approx(2.5 * case.mask.density, rel=1e-4)
    assert row.tflops == pytest.approx(4 * 144**2 * 64 * case.mask.density / 2e-3 * 1e-12, rel=1e-4)
    assert row.rel_l2 == pytest.approx(0.5, rel=1e-4)
    assert run.results.details[0]["p90_ms"] == 3.0
    kernels._keep(run, kernels.Measured(our_impls()[0], None, 2.0), case, 5.0, truth, backward=True)
    assert run.results.rows[1].impl == "loom: backward"
    assert run.results.rows[1].tflops == pytest.approx(2.5 * row.tflops, rel=1e-3)


@pytest.mark.parametrize("pattern", masks.PATTERNS)
def test_masks_come_near_the_wanted_density(pattern):
    shape = Shape("v", "", 2, 32, (9, 15, 26), 20, block=64)
    q, k, _ = inputs.structured(shape, torch.float32, "cpu")
    found = [masks.make(pattern, d, shape, q, k) for d in (0.5, 0.25)]
    assert found[0].density > found[1].density or pattern == "radial"
    for mask, wanted in zip(found, (0.5, 0.25), strict=True):
        assert abs(mask.density - wanted) < 0.12 or pattern == "radial"
        assert torch.equal(mask.rebuilt().kinds(), mask.plan.kinds())


def test_radial_needs_frames():
    with pytest.raises(masks.NoPlan, match="fewer than three frames"):
        masks.make("radial", 0.5, TINY[1], *inputs.random(TINY[1], torch.float32, "cpu")[:2])


def test_exact_rows_are_the_oracles():
    q, k, v = inputs.structured(TINY_VIDEO, torch.float32, "cpu")
    rows = measure.sampled_rows(TINY_VIDEO.count, "cpu")
    mask = masks.make("topk", 0.3, TINY_VIDEO, q, k)
    for plan in (None, mask.plan):
        want = reference_attend(q, k, v, AttentionPlan(blocks=plan))[:, :, rows]
        assert measure.relative_l2(measure.exact_rows(q, k, v, rows, 64**-0.5, plan), want.float()) < 1e-5


def test_block_order_round_trip():
    q, k, _ = inputs.structured(TINY_VIDEO, torch.float32, "cpu")
    for pattern in ("random", "window"):
        order = masks.make(pattern, 0.5, TINY_VIDEO, q, k).plan.q
        there, back = rivals.in_block_order(order)
        placed = there(q)
        assert torch.equal(back(placed), q)
        first = order.perm[: order.block]
        assert torch.equal(placed[:, :, : int(order.valid[0])], q[:, :, first[first >= 0].long()])


def test_shapes_are_the_papers():
    count = {s.name: s.count for s in SHAPES}
    assert count["hunyuan-720p"] == 119056
    assert count["hunyuan-768p"] == 115456
    assert count["wan14b-720p"] == 75600
    assert count["wan1.3b-480p"] == 32760
    assert count["cogvideox-5b"] == 17776
    assert (count["flux-1024"], count["flux-2048"], count["flux-4096"]) == (4608, 16896, 66048)
    assert next(s for s in SHAPES if s.name == "hunyuan-720p").dense_flops == pytest.approx(174e12, rel=0.01)
    assert set(QUICK) <= set(count)
    names = [s.name for s in (*SHAPES, *TINY)] + list(masks.PATTERNS) + [i.name for i in (*dense_impls(), *our_impls(), *rivals.rivals())]
    assert len(set(names)) == len(names), "a name given to --only means one thing"


def test_hash_sees_names_and_contents_and_no_line_ends(tmp_path):
    folder = tmp_path / "kernels" / "triton"
    folder.mkdir(parents=True)
    (folder / "a.py").write_bytes(b"x = 1\n")
    first = provenance.kernels_sha256(tmp_path)
    (folder / "a.py").write_bytes(b"x = 1\r\n")
    assert provenance.kernels_sha256(tmp_path) == first
    (folder / "note.txt").write_text("no code")
    assert provenance.kernels_sha256(tmp_path) == first
    (folder / "a.py").write_bytes(b"x = 2\n")
    assert provenance.kernels_sha256(tmp_path) != first
    (folder / "a.py").write_bytes(b"x = 1\n")
    (folder / "a.py").rename(folder / "b.py")
    assert provenance.kernels_sha256(tmp_path) != first


def fake_document(dry):
    """Times that nobody measured, to see tables and pictures by; never written into the project."""
    rows = [r | {"ms": 1.0, "dense_ms": 2.0, "speedup": 2.0, "tflops": 3.0, "efficiency": 0.5, "peak_mb": 1.0} for r in dry["rows"]]
    return dry | {"rows": rows}


def test_table_and_page(dry, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "kernels_sha256", lambda: dry["kernels_sha256"])
    text = report.section(dry)
    assert "not measured" in text
    assert "The kernels are those of this tree." in text
    assert "**three frames and some text** (`tiny-video`)" in text
    assert "**The kernels have changed since**" in report.section(dry | {"kernels_sha256": "0"})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(text, page)
    assert "old" not in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")
    page.write_text("no place")
    with pytest.raises(ValueError, match="no place for results"):
        report.write(text, page)
    assert report.BEGIN in report.PAGE.read_text()


@pytest.mark.interpreter
def test_plot(dry, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="nothing was timed"):
        report.plot(dry, tmp_path / "none.png")
    report.plot(fake_document(dry), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


# --- checks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.interpreter
def test_checks_hold_and_notice_what_is_broken(monkeypatch):
    size = dataclasses.replace(checks.TINY, tokens=64)
    found = {name: list(check()) for name, check in checks.all_checks(size, "cpu") if not name.startswith("numerics")}
    assert set(found) == {"int8_qk float16", "int8_qk_fp8_pv float16", "batch layouts", "no NaN from what is not read", "values"}
    assert all(f.ok for part in found.values() for f in part), [f for part in found.values() for f in part if not f.ok]
    inner = checks.ours
    monkeypatch.setattr(checks, "ours", lambda *a, **b: tuple(x * 1.01 for x in inner(*a, **b)))
    broken = [f for f in checks.numerics(size, "cpu", torch.float16, 64) if not f.ok]
    assert {f.name for f in broken} >= {"dense: output", "half: log-sum-exp", "frames: gradient of v"}
    assert not checks.Finding("nan", float("nan"), 1).ok
