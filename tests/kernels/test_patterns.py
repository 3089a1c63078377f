"""The list of patterns, their pictures, and the tutorial: its code is taken from the page and run."""

import importlib.util
import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import attention_loom.kernels as kernels
import numpy as np
import pytest
import torch
from attention_loom.kernels import AttentionPlan, attend, reference_attend
from attention_loom.kernels.patterns import PATTERNS, fit
from attention_loom.kernels.patterns.base import Moment, Pattern, Tokens
from attention_loom.kernels.patterns.dense import Dense
from attention_loom.kernels.patterns.draw import COLOURS, FREE, PAPER, describe, picture
from attention_loom.kernels.patterns.sparsed import SparseD
from attention_loom.kernels.sparse import Sparse
from kernel_cases import assert_close
from pattern_tools import NO_GRID, PICTURE, TEXT_FIRST, VIDEO, assert_runs_like_reference, call, counted_density, run
from PIL import Image

PAGE = Path(kernels.__file__).parent.parent / "docs" / "adding-a-pattern.md"


def test_every_pattern_is_listed_under_its_name():
    assert list(PATTERNS)[: len(fit.NAMES)] == fit.NAMES
    assert fit.NAMES[:8] == ["radial", "draft", "adaspa", "sparsed", "rettention", "sla_topk", "clear", "sliding_tile"]
    assert "dense" in PATTERNS
    for name, pattern in PATTERNS.items():
        assert issubclass(pattern, Pattern)
        assert pattern.name == name
        assert pattern.reads in ("geometry", "q and k", "history")
        assert pattern().label.startswith(f"{name}_")


@pytest.mark.parametrize("name", [n for n, p in PATTERNS.items() if p.reads != "history"])
def test_patterns_are_values(name):
    """Equal settings are one pattern, so plans are shared; nobody can change one behind a plan's back."""
    pattern = PATTERNS[name](block=64)
    assert pattern == PATTERNS[name](block=64)
    assert hash(pattern) == hash(PATTERNS[name](block=64))
    with pytest.raises(AttributeError):
        pattern.block = 128


@pytest.mark.parametrize("name", [n for n, p in PATTERNS.items() if p.reads != "history"])
@pytest.mark.parametrize("tokens", [VIDEO, TEXT_FIRST, PICTURE, NO_GRID], ids=describe)
def test_every_row_reads_something(name, tokens):
    pattern = PATTERNS[name](block=32)
    if pattern.needs_grid and tokens.grid is None:
        with pytest.raises(ValueError, match=f"{name} needs a grid"):
            pattern.blocks(call(tokens))
        return
    assert (pattern.blocks(call(tokens)).kinds().amax(-1) > 0).all()
    assert_runs_like_reference(pattern, tokens)


@pytest.mark.parametrize("name", [n for n, p in PATTERNS.items() if p.reads != "history"])
def test_choosing_waits_for_nothing(name):
    """On the meta device there are no values: whoever asks for one, as a wait for the GPU would, gets an error."""
    s = call(VIDEO, batch=2)
    s.q, s.k, s.v = (x.to("meta") for x in (s.q, s.k, s.v))
    plan = PATTERNS[name](block=32).blocks(s)
    assert plan.full.ptr.device.type == "meta"
    plan.density()
    with pytest.raises((RuntimeError, NotImplementedError)):
        plan.full.ptr.tolist()


def test_head_ranges_remember_things_of_their_own():
    """Cut to its heads a bound pattern must not find the mask of others: ranges of one size look alike to it."""
    s, whole, cut = call(VIDEO, heads=4), {}, {}
    for step in (1, 2):
        plans = [AttentionPlan(blocks=Sparse(SparseD(block=16, skip=0.0), VIDEO, Moment(step / 10, 10), ((1, state),))) for state in (whole, cut)]
        want = attend(s.q, s.k, s.v, plans[0], backend="chunked")
        for h in (0, 2):
            part = slice(h, h + 2)
            got = attend(s.q[:, part], s.k[:, part], s.v[:, part], plans[1].head_range(h, h + 2, 4), backend="chunked")
            assert torch.equal(got, want[:, part]), (step, h)


@pytest.mark.parametrize("tokens", [VIDEO, NO_GRID], ids=describe)
def test_dense_is_dense(tokens):
    s = call(tokens)
    plan = Dense(block=32).blocks(s)
    assert (plan.kinds() == 2).all()
    assert float(plan.density()) == counted_density(plan) == 1
    assert_close("o", run(Dense(block=32), s), reference_attend(s.q, s.k, s.v, AttentionPlan()), 3e-6)


# --- pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_draws_itself(name, tmp_path, monkeypatch, capsys):
    path = tmp_path / f"{name}.png"
    monkeypatch.setattr(sys, "argv", [name, str(path)])
    import_module(PATTERNS[name].__module__).main()
    assert f": {name}_" in capsys.readouterr().out
    with Image.open(path) as image:
        assert 500 < image.width < 1000
        assert 500 < image.height < 1800
        seen = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
        assert {COLOURS[2], PAPER} <= seen


def test_a_pattern_draws_itself_from_the_command_line(tmp_path):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "attention_loom.kernels.patterns.radial"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("./radial.png: radial_b64_d0.20_sink, density 0.")
    assert (tmp_path / "radial.png").stat().st_size > 4000


def test_the_picture_shows_the_mask():
    plan = Dense(block=16).plan(TEXT_FIRST)
    own, all_blocks = plan.q.grid_blocks, plan.q.blocks
    mask = torch.zeros(all_blocks, all_blocks, dtype=torch.bool)
    mask[1, 3] = mask[own:] = True
    plan = kernels.from_bool(mask, plan.q, plan.k)
    image = np.asarray(picture(plan, "a title"))
    cell = 640 // all_blocks

    def colour(row, column):
        return tuple(image[104 + row * cell + cell // 2, 78 + column * cell + cell // 2])

    assert colour(1, 3) == COLOURS[2]
    assert colour(3, 1) == COLOURS[0]
    assert colour(own, 0) == COLOURS[2]
    assert tuple(image[104 + own * cell, 90]) == FREE
    taller = np.asarray(picture(Dense(block=16).plan(NO_GRID), "no grid, no second panel"))
    assert taller.shape[0] < image.shape[0]


# --- the tutorial --------------------------------------------------------------------------------------------------------


def code(starts: str) -> str:
    """The one Python block of the page that begins with ``starts``."""
    found = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if block.startswith(starts)]
    assert len(found) == 1, f"{len(found)} blocks begin with {starts!r}"
    return found[0]


def load(name: str, text: str, folder: Path):
    """``text`` as a module called ``name``."""
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dilated(tmp_path, monkeypatch):
    """The tutorial's pattern, as if its file were there."""
    name = "attention_loom.kernels.patterns.dilated"
    monkeypatch.setitem(sys.modules, name, None)  # so that it is taken away again
    return load(name, code('"""Dilated frames'), tmp_path)


@pytest.fixture
def its_tests(dilated, tmp_path, monkeypatch):
    """The tutorial's tests: a list of calls without arguments."""
    monkeypatch.setitem(sys.modules, "test_pattern_dilated", None)
    module = load("test_pattern_dilated", code("import pytest"), tmp_path)
    calls = []
    for test in (f for name, f in vars(module).items() if name.startswith("test_")):
        marks = [m.args[1] for m in getattr(test, "pytestmark", []) if m.name == "parametrize"]
        calls += [partial(test, value) for value in marks[0]] if marks else [test]
    return calls


def test_the_pattern_of_the_tutorial_is_short():
    assert len(code('"""Dilated frames').splitlines()) < 60


def test_the_tests_of_the_tutorial_pass(its_tests):
    assert len(its_tests) == 6
    for test in its_tests:
        test()


def test_the_tests_of_the_tutorial_notice_a_mistake(its_tests, dilated, monkeypatch):
    monkeypatch.setattr(dilated, "with_free", lambda mask, q, k: mask)
    with pytest.raises(AssertionError):
        its_tests[0]()


def test_the_tutorial_draws_its_picture(dilated, tmp_path, monkeypatch):
    """The mask on the page is the one it draws; letters may differ from font to font."""
    path = tmp_path / "dilated.png"
    monkeypatch.setattr(sys, "argv", ["dilated", str(path)])
    dilated.main()
    with Image.open(path) as drawn, Image.open(PAGE.parent / "images" / "pattern_dilated.png") as shown:
        assert drawn.size == shown.size
        mask = (78, 104, 78 + 620, 104 + 620)
        assert np.array_equal(np.asarray(drawn.crop(mask)), np.asarray(shown.convert("RGB").crop(mask)))


def test_the_tutorial_puts_the_pattern_on_the_list(dilated, tmp_path, monkeypatch):
    monkeypatch.setitem(PATTERNS, "dilated", dilated.Dilated)
    monkeypatch.setattr(fit, "_GEOMETRY", dict(fit._GEOMETRY))
    above = "from functools import partial\nfrom attention_loom.kernels.patterns.dilated import Dilated\nfrom attention_loom.kernels.patterns.fit import _GEOMETRY\n\n\n"
    monkeypatch.setitem(sys.modules, "fit_of_the_tutorial", None)
    load("fit_of_the_tutorial", above + code("def _dilated"), tmp_path)
    tokens = Tokens(24 * 64, (24, 8, 8))
    densities = []
    for share in (0.9, 0.5, 0.35):
        pattern, note = fit.fit(fit.Choice("dilated", density=share, block=32), tokens)
        densities.append(float(pattern.plan(tokens).density()))
        assert not note
        assert densities[-1] <= share
    assert densities == sorted(densities, reverse=True)
    assert len(set(densities)) == 3
