"""The scoreboard without a host: rows, keys, resuming, interrupting, the page, bad input. Clips are rendered instead of sampled."""

import json
import math
import random
import re
import shutil

import numpy
import pytest
import torch
from attention_loom.toyworld import fidelity, measures, on_drag, on_path, pictures, scores, steady, world
from attention_loom.toyworld.host import CHECKPOINTS
from attention_loom.toyworld.scoreboard import __main__ as cli
from attention_loom.toyworld.scoreboard import keys, portraits, rows, scene_footage, show, tables
from attention_loom.toyworld.scoreboard.board import Board
from attention_loom.toyworld.scoreboard.checkpoints import checked
from attention_loom.toyworld.scoreboard.footage import Footage
from attention_loom.toyworld.scoreboard.graphs import REPORT, SAMPLER, SAVE, Shot, through
from attention_loom.toyworld.scoreboard.ledger import Ledger
from attention_loom.toyworld.scoreboard.prompts import held_out, moving
from attention_loom.toyworld.scoreboard.row import Arm, Judge, Row
from attention_loom.toyworld.scoreboard.studio import Clip, Studio
from attention_loom.toyworld.scoreboard.worlds import WORLDS
from PIL import Image, ImageSequence

WAN = WORLDS["wan"].models
LEVELS = {"stock": 100, "other": 120, "ours": 150}


def level(footage):
    """Mean grey level of a clip and its distance to stock."""
    found = {"grey": float(footage.frames.mean())}
    return found if footage.stock is None else found | {"off": float((footage.frames - footage.stock).mean())}


def arm(name, code=()):
    return Arm(name, through((f"Kind{name}", {})), code)


@pytest.fixture
def row():
    return Row("grey-2x", "grey", "Ours is lighter.", 2, arm("stock"), (arm("other"),), arm("ours"), (Judge("grey", "grey"), Judge("off", "distance", "lower")), measure=level)


class Painter(Studio):
    """Paints a grey level by the arm, a little different from seed to seed, instead of asking a host."""

    def __init__(self, folder, fail_after=None):
        super().__init__(folder)
        self.drawn, self.fail_after = [], fail_after

    def _draw(self, graph, models):
        if self.fail_after is not None and len(self.drawn) >= self.fail_after:
            raise KeyboardInterrupt
        name = graph["method_1"]["class_type"].removeprefix("Kind")
        self.drawn.append(name)
        frames = numpy.full((5, 64, 64, 3), LEVELS[name] + graph[SAMPLER]["inputs"]["seed"] % 7, numpy.uint8)
        return Clip(frames, 1.5, math.nan, "", "CPU", keys.shared_key())


@pytest.fixture
def board(tmp_path):
    def make(**more):
        painter = Painter(tmp_path / "clips", **more).__enter__()
        return Board(Ledger.read(tmp_path / "out" / "results.json"), painter, CHECKPOINTS, 4, say=lambda line: None)

    return make


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", rows.all_rows(), ids=lambda row: row.name)
def test_registered_rows_keep_the_contract(row):
    known = (
        {**measures.COLUMNS, **steady.COLUMNS, **fidelity.COLUMNS, "pairs": ""}
        if row.world == "wan"
        else {**scores.COLUMNS, **scene_footage.COLUMNS, **on_path.COLUMNS, **on_drag.COLUMNS, **portraits.COLUMNS, **fidelity.COLUMNS, "pairs": ""}
    )
    assert {judge.reads for judge in row.judges} <= set(known)
    first, other = row.shots(2, 16)
    for one in (arm for arm in row.arms if arm.graph):
        graph = one.graph(first)
        endless = any(node["class_type"] == "LoomOuroboros" for node in graph.values())
        assert graph[SAMPLER]["class_type"] == ("SamplerCustomAdvanced" if endless else "KSampler")
        assert graph[SAVE]["class_type"] == "SaveImage" if row.setting.picture else graph[SAVE]["inputs"]["lossless"] is True
        assert (REPORT in graph) == any(node["class_type"].startswith("Loom") and "model" in node["inputs"] for key, node in graph.items() if key != REPORT)
        assert endless or row.setting.picture or graph["latent"]["inputs"]["length"] == 4 * row.latent_frames - 3
        loaded = graph["unet"]["inputs"]["unet_name"]
        assert loaded == row.models[0][0] or (one is not row.ours and (loaded, "diffusion_models") in row.more), "the world's own, or one the row names beside it"
        assert graph != one.graph(other)
        assert keys.clip_key(graph, (), one.code)
    assert not row.stock.code
    assert row.ours is None or row.ours.code


def test_arms_of_a_row_are_paired():
    for row in rows.all_rows():
        noise = {
            (g["noise"]["inputs"]["noise_seed"] if "noise" in g else g[SAMPLER]["inputs"]["seed"], g["positive"]["inputs"]["text"])
            for a in row.arms
            if a.graph
            for g in [a.graph(row.shots(1, 16)[0])]
        }
        assert len(noise) == 1


def test_more_seeds_keep_the_earlier_prompts_and_none_is_a_study_s():
    from attention_loom.toyworld import length_study

    for prompts in (held_out, moving):
        assert prompts(9)[:4] == prompts(4)
    assert not {seed for _, seed in held_out(500)} & {seed for _, seed in length_study.held_out(500)}
    assert len({caption.split(maxsplit=3)[3] for caption, _ in held_out(7)}) == 7
    assert not any("still" in caption for caption, _ in moving(30))


def test_a_share_of_pairs_is_read_from_the_report():
    from attention_loom.toyworld.scoreboard.rows.sparse import measure

    clip = world.render(world.random_scene(random.Random(0)))
    text = "Wan on cpu\n- pattern draft density 0.25: 72 sparse; 26.3% of the pairs computed on average; more\n"
    assert measure(Footage("a red circle moving right", clip, clip, text))["pairs"] == pytest.approx(0.263)
    assert measure(Footage("a red circle moving right", clip, None, ""))["pairs"] == 1.0


def test_two_arms_of_one_name_are_refused(row):
    with pytest.raises(ValueError, match="two arms of one name"):
        Row("x", "x", "", 2, row.stock, (row.stock,), row.ours, row.judges)


# --- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_sees_code_and_not_its_comments(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    path = tmp_path / "method.py"

    def key(text):
        path.write_text(text)
        keys.code_key.cache_clear()
        return keys.clip_key({}, (), ("method.py",))

    first = key('"""What."""\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert first == key("# why\ndef f(x):\n\n    return (x + 1)  # because\n")
    assert first != key("def f(x):\n    return x + 2\n")


def test_a_key_sees_graph_and_checkpoint(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"one")
    first = keys.clip_key({"a": 1}, (path,), ())
    assert first != keys.clip_key({"a": 2}, (path,), ())
    path.write_bytes(b"two")
    keys.file_key.cache_clear()
    assert first != keys.clip_key({"a": 1}, (path,), ())
    with pytest.raises(ValueError, match="core/no_such_method.py"):
        keys.clip_key({}, (), ("core/no_such_method.py",))


# --- resuming -------------------------------------------------------------------------------------------------------


def test_a_second_run_draws_nothing_and_more_seeds_draw_the_rest(board, row):
    one = board()
    one.play([row], 3)
    assert sorted(one.studio.drawn) == sorted(["stock", "other", "ours"] * 3)
    again = board()
    again.play([row], 3)
    assert again.studio.drawn == []
    more = board()
    more.play([row], 5)
    assert len(more.studio.drawn) == 6
    assert more.ledger.complete(row) == [0, 1, 2, 3, 4]


def test_results_alone_are_enough(board, row, tmp_path):
    """A fresh clone has the JSON and no clips."""
    board().play([row], 2)
    shutil.rmtree(tmp_path / "clips")
    again = board()
    again.play([row], 2)
    assert again.studio.drawn == []


def test_changed_code_draws_its_arm_only(board, row):
    board().play([row], 2)
    changed = Row("grey-2x", "grey", "", 2, row.stock, row.alternatives, arm("ours", ("core/errors.py",)), row.judges, measure=level)
    other = board()
    assert other.stale(changed) == 2
    other.play([changed], 2)
    assert other.studio.drawn == ["ours", "ours"]
    assert other.stale(changed) == 0


def test_changed_measures_measure_kept_clips(board, row, monkeypatch):
    board().play([row], 2)

    drawn_with = keys.shared_key()
    monkeypatch.setattr(keys, "shared_key", lambda: "later")

    def darker(footage):
        return {"grey": -float(footage.frames.mean())}

    other = board()
    changed = Row("grey-2x", "grey", "", 2, row.stock, row.alternatives, row.ours, row.judges, measure=darker)
    other.play([changed], 2)
    assert other.studio.drawn == []
    assert other.ledger.column(changed, "ours", "grey").max() < 0
    assert other.ledger.rows["grey-2x"]["ours"][0].shared == drawn_with  # the clip is as old as before


def test_other_steps_do_not_mix(board, row):
    board().play([row], 2)
    other = board()
    other.steps = 5
    other.play([row], 2)
    assert len(other.studio.drawn) == 6
    assert {cell.steps for cells in other.ledger.rows["grey-2x"].values() for cell in cells.values()} == {5}


def test_an_interrupt_keeps_whole_pairs_and_goes_on(board, row):
    one = board(fail_after=5)
    with pytest.raises(KeyboardInterrupt):
        one.play([row], 3)
    assert one.ledger.complete(row) == [0]
    rest = board()
    rest.play([row], 3)
    assert rest.studio.drawn == ["ours", "stock", "other", "ours"]


def test_fresh_clips_are_not_taken_from_the_folder(board, row):
    board().play([row], 2)
    fresh = board()
    fresh.ledger.drop(row, set())
    fresh.studio.distrust()
    fresh.play([row], 2)
    assert len(fresh.studio.drawn) == 6


def test_the_ledger_keeps_what_has_no_value(board, row, tmp_path):
    board().play([row], 2)
    text = (tmp_path / "out" / "results.json").read_text()
    assert "NaN" not in text
    ledger = Ledger.read(tmp_path / "out" / "results.json")
    assert math.isnan(ledger.rows["grey-2x"]["ours"][0].memory_mib)
    assert math.isnan(ledger.column(row, "stock", "off")[0])


# --- the page and its pictures --------------------------------------------------------------------------------------


def test_the_page_says_what_was_gained(board, row, tmp_path):
    b = board()
    b.play([row], 3)
    text = tables.page(b, [row], tmp_path)
    gain = (LEVELS["ours"] - LEVELS["stock"]) / 255
    assert f"{gain:+.3f} [{gain:+.3f}, {gain:+.3f}] better" in text
    worse = (LEVELS["ours"] - LEVELS["other"]) / 255  # further from stock than the alternative, and less is better
    assert f"{worse:+.3f} [{worse:+.3f}, {worse:+.3f}] worse (other)" in text
    assert "| **ours** | 0." in text
    assert "| 1.50 |  |" in text
    assert "CPU seconds" in text
    assert "of 3 about" in text
    assert "images/" not in text


def test_an_unclear_gain_is_called_open(board, monkeypatch):
    monkeypatch.setitem(LEVELS, "ours", LEVELS["stock"])
    row = Row("grey-2x", "grey", "", 2, arm("stock"), (arm("other"),), arm("ours"), (Judge("grey", "grey"),), measure=level)
    b = board()
    b.play([row], 2)
    assert "+0.000 [+0.000, +0.000] open" in tables.page(b, [row], cli.ROOT)


def test_the_page_admits_old_clips(board, row):
    b = board()
    b.play([row], 2)
    assert "draws them anew" not in tables.page(b, [row], cli.ROOT)
    b.ledger.rows["grey-2x"]["other"][1].shared = "earlier"
    assert "*1 of 6 clips were drawn before the last change of the pack's shared code" in tables.page(b, [row], cli.ROOT)
    b.ledger.rows["grey-2x"]["other"][1].key = "earlier"
    assert "*1 of 6 clips are from before the last change of this method" in tables.page(b, [row], cli.ROOT)


def test_pictures_show_best_middle_and_worst_once(board, row, tmp_path):
    b = board()
    b.play([row], 3)
    assert len(show.chosen(b, row)) == 3
    show.draw(b, row, tmp_path)
    sheet, moving_ = (tmp_path / path for path in show.files(row))
    with Image.open(moving_) as clip:
        assert len(list(ImageSequence.Iterator(clip))) >= 1
    before = sheet.stat().st_mtime_ns
    show.draw(b, row, tmp_path)
    assert sheet.stat().st_mtime_ns == before
    assert "images/results/grey-2x.webp" in tables.page(b, [row], tmp_path)


def test_a_contact_sheet_holds_the_frames_in_time(tmp_path):
    ramp = numpy.arange(27, dtype=numpy.uint8)[:, None, None, None] * numpy.uint8(9) + numpy.zeros((1, 64, 64, 3), numpy.uint8)
    path = tmp_path / "sheet.png"
    pictures.contact_sheet([pictures.Panel("ramp", {"one": ramp})], "title", path)
    line = numpy.asarray(Image.open(path))[40 + 30 + 32, :, 0]
    shown = [value for n, value in enumerate(line) if n and value != line[n - 1]]
    assert [v for v in shown if v in range(0, 235, 18) and v % 18 == 0][-14:] == list(range(0, 235, 18))


def test_an_animation_runs_to_the_longest_clip(tmp_path):
    noise = numpy.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=numpy.uint8)
    path = tmp_path / "clips.webp"
    pictures.animation([pictures.Panel("noise", {"long": noise, "short": noise[:3]})], path)
    with Image.open(path) as clip:
        assert clip.n_frames == 6


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--only", "ultravico", "telepathy"],
            "no method or row called 'telepathy'; methods: astar, diffuhaul, ditraj, entropy_scale, gradsam, headhunter, ir_diffusion, ouroboros, pictures, riflex, softpag, spacetime, sparse, ultravico",
        ),
        (["--seeds", "many"], "SEEDS 'many' was given; it is a whole number from 2 on."),
        (["--seeds", "1"], "SEEDS '1' was given"),
        (["--seeds", "-4"], "SEEDS '-4' was given"),
        (["--steps", "2.5"], "steps '2.5' was given"),
        (["--only", "riflex-2x", "--checkpoints", "/nowhere"], "/nowhere/toy_wan_t2v.safetensors, /nowhere/toy_umt5.safetensors, /nowhere/toy_wan_vae.safetensors are not there"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_starts(arguments, words, capsys, tmp_path):
    if "-4" in arguments:
        arguments = ["--seeds=-4"]
    assert cli.main([*arguments, "--out", str(tmp_path)], clips=tmp_path) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "results.json").exists()


def test_foreign_and_broken_checkpoints_are_named(tmp_path):
    import safetensors.torch

    for name, _ in WAN:
        shutil.copy(CHECKPOINTS / name, tmp_path)
    assert len(checked(tmp_path, WAN)) == 3
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / WAN[2][0])
    with pytest.raises(ValueError, match=r"toy_wan_vae\.safetensors was not written by the toy worlds' trainers"):
        checked(tmp_path, WAN)
    (tmp_path / WAN[1][0]).write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"toy_umt5\.safetensors is no readable safetensors file"):
        checked(tmp_path, WAN)


@pytest.mark.parametrize("text", ["no json", "{}", '{"version": 99, "rows": {}}', '{"version": 1, "rows": {"a": {"b": {"0": {"wrong": 1}}}}}', "[]"])
def test_foreign_results_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'results.json'} does not hold results of this scoreboard")):
        Ledger.read(tmp_path / "results.json")


def test_the_committed_results_are_of_registered_rows():
    data = json.loads((cli.ROOT / "docs" / "results.json").read_text())
    known = {row.name: {one.name for one in row.arms} for row in rows.all_rows()}
    assert set(data["rows"]) <= set(known)
    assert all(set(arms) <= known[name] for name, arms in data["rows"].items())


def test_a_caption_outside_the_grammar_is_refused():
    with pytest.raises(ValueError, match="not a caption of the shapes world"):
        rows.select(["riflex-2x"])[0].reader(Footage("a fox", torch.zeros(5, 64, 64, 3), None, ""))


def test_a_shot_is_a_value():
    assert through()(Shot("a", 1, 6, 2)) == through()(Shot("a", 1, 6, 2))
