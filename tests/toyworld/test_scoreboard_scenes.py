"""The scoreboard in the second world, without a host: worlds, prompts, measures, rendered truth, rows on stock models, absent checkpoints, picture sheets."""

import random

import numpy
import pytest
import safetensors.torch
import torch
from attention_loom.toyworld.pictures import Panel
from attention_loom.toyworld.readings import read
from attention_loom.toyworld.scenes import Caption, random_scene, render
from attention_loom.toyworld.scoreboard import __main__ as cli
from attention_loom.toyworld.scoreboard import keys, regions, rows, scene_prompts, show, tables
from attention_loom.toyworld.scoreboard.board import Board
from attention_loom.toyworld.scoreboard.checkpoints import Absent
from attention_loom.toyworld.scoreboard.footage import Footage
from attention_loom.toyworld.scoreboard.graphs import SAMPLER, SAVE, Shot, base, through
from attention_loom.toyworld.scoreboard.ledger import Ledger
from attention_loom.toyworld.scoreboard.row import TRUTH, Arm, Judge, Row
from attention_loom.toyworld.scoreboard.scene_footage import COLUMNS, broken, measure_scene, motion_kept, rendered_clip, right
from attention_loom.toyworld.scoreboard.sheets import picture_sheet
from attention_loom.toyworld.scoreboard.studio import Clip, Studio
from attention_loom.toyworld.scoreboard.worlds import WORLDS, world
from PIL import Image

SIDES = scene_prompts.pictures(2, ("left", "right"))


def picture_row(name="pair", alternatives=(), **more):
    judges = (Judge("right", "all right"), Judge("presence", "presence"), Judge("texture", "texture"))
    return Row(name, "pictures", "Stock drops one.", 1, Arm("stock", through()), alternatives, None, judges, world="scenes_sd3", prompts=SIDES, **more)


@pytest.fixture
def checkpoints(tmp_path):
    """A folder with stand-ins of one world's files, by its name."""

    def make(*names):
        folder = tmp_path / "checkpoints"
        folder.mkdir(exist_ok=True)
        for name, _ in {model for world_name in names for model in WORLDS[world_name].models}:
            safetensors.torch.save_file({"weight": torch.zeros(1)}, folder / name, metadata={"toyworld": "{}"})
        return folder

    return make


class Painter(Studio):
    """Draws the rendered truth instead of asking a host; a graph without conditioning nodes drops the last object."""

    def __init__(self, folder):
        super().__init__(folder)
        self.drawn = []

    def _draw(self, graph, models):
        caption, seed = Caption.parse(graph["positive"]["inputs"]["text"]), graph[SAMPLER]["inputs"]["seed"]
        kept = caption if "both" in graph else Caption(caption.things[:-1], caption.ground)
        self.drawn.append("areas" if "both" in graph else "stock")
        frames = render(random_scene(random.Random(seed), kept), size=128)
        return Clip((frames * 255).byte().numpy(), 0.5, 900.0, "", "CPU", keys.shared_key())


@pytest.fixture
def board(tmp_path):
    def make(folder):
        heard = []
        made = Board(Ledger.read(tmp_path / "out" / "results.json"), Painter(tmp_path / "clips").__enter__(), folder, 4, say=heard.append)
        return made, heard

    return make


# --- worlds and graphs ----------------------------------------------------------------------------------------------


def test_every_world_has_a_graph_of_its_own_files():
    for name, here in WORLDS.items():
        graph = base(Shot(here.prompts(1)[0][0], 1, here.bundle.latent_frames or 1, 4, name))
        used = {node["inputs"][key] for node in graph.values() for key in ("unet_name", "clip_name", "vae_name") if key in node["inputs"]}
        assert used == {file for file, _ in here.models}
        assert graph["latent"]["inputs"]["width"] == here.bundle.size
        assert graph[SAMPLER]["inputs"]["model"] == (["shift", 0] if here.bundle.settings.shift else ["unet", 0])
        assert graph[SAVE]["class_type"] == ("SaveImage" if here.picture else "SaveAnimatedWEBP")


def test_steps_are_those_of_the_world_unless_given():
    steps = {name: rows.Row("x", "x", "", 1, Arm("stock", through()), (), None, (Judge("right", "right"),), world=name).shots(1)[0].steps for name in WORLDS}
    assert steps == {name: here.bundle.settings.steps for name, here in WORLDS.items()}
    assert len(set(steps.values())) > 1
    assert picture_row().shots(1, 4)[0].steps == 4


def test_worlds_name_nodes_that_the_toy_world_has():
    from attention_loom.toyworld.comfy_node import NODE_CLASS_MAPPINGS

    assert {here.loader for here in WORLDS.values()} - {"UNETLoader"} <= set(NODE_CLASS_MAPPINGS)
    assert "ToyWorldTextEncoder" in NODE_CLASS_MAPPINGS


def test_an_unknown_world_and_long_pictures_are_refused():
    with pytest.raises(ValueError, match="no world called 'flux'; worlds: wan, scenes_wan_t2v"):
        world("flux")
    with pytest.raises(ValueError, match="draws pictures: latent_frames is 1, not 3"):
        Row("x", "x", "", 3, Arm("stock", through()), (), None, (Judge("right", "right"),), world="scenes_sd15")


def test_areas_are_halves_with_an_object_each():
    shot = Shot("a red circle on the left and a striped blue square on the right on a green dotted background", 1, 1, 4, "scenes_sd3")
    graph = regions.areas(shot, whole=True)
    assert graph["text_0"]["inputs"]["text"] == "a red circle on a green dotted background"
    assert graph["text_1"]["inputs"]["text"] == "a striped blue square on a green dotted background"
    assert [graph[f"half_{n}"]["inputs"]["x"] for n in (0, 1)] == [0, 64]
    assert graph[SAMPLER]["inputs"]["positive"] == ["all", 0]
    assert regions.areas(shot, whole=False)[SAMPLER]["inputs"]["positive"] == ["both", 0]
    assert {"mask_0", "mask_1"} <= set(regions.masks(shot))
    with pytest.raises(ValueError, match="a half for each of two objects; 'a red circle on a grey background' names 1"):
        regions.areas(Shot("a red circle on a grey background", 1, 1, 4, "scenes_sd3"), whole=False)


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [scene_prompts.clips, scene_prompts.pictures(3), SIDES], ids=["clips", "three", "sides"])
def test_more_seeds_keep_the_earlier_prompts_and_each_can_be_rendered(prompts):
    drawn = prompts(8)
    assert prompts(3) == drawn[:3]
    for caption, seed in drawn:
        random_scene(random.Random(seed), Caption.parse(caption))


def test_prompts_are_what_they_say():
    captions = [Caption.parse(text) for text, _ in scene_prompts.clips(7)]
    assert [caption.things[0].motion for caption in captions] == list(scene_prompts.ORDER)
    assert all(len(caption.things) == 1 and caption.things[0].texture != "plain" for caption in captions)
    assert all([thing.place for thing in Caption.parse(text).things] == ["left", "right"] for text, _ in SIDES(5))
    turns = scene_prompts.pictures(1, ("top",), ("centre",))(4)
    assert [Caption.parse(text).things[0].place for text, _ in turns] == ["top", "centre", "top", "centre"]


# --- measures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2], ids=["straight", "orbit", "bounce"])
def test_the_truth_keeps_its_motion_for_ever(number):
    caption, seed = scene_prompts.clips(3)[number]
    truth = read(rendered_clip(caption, seed, 18), caption)
    assert motion_kept(truth) == right(truth) == 1.0
    assert broken(truth) == 0.0
    stopped = read(truth.frames[torch.arange(69).clamp(max=32)], caption)
    assert motion_kept(stopped) == 0.5


def test_what_is_not_right_is_seen():
    caption = "a red circle on the left and a large blue square on the right on a grey background"
    truth = rendered_clip(caption, 3, 1, 128)
    assert measure_scene(Footage(caption, truth, None, ""))["right"] == 1.0
    swapped = caption.replace("red", "green")
    assert measure_scene(Footage(swapped, truth, None, ""))["right"] == 0.0
    doubled = caption.replace(" on a grey", " and a white triangle at the top on a grey")
    assert measure_scene(Footage(doubled, truth, None, ""))["right"] == 0.0
    assert measure_scene(Footage(caption, rendered_clip(doubled, 3, 1, 128), None, ""))["right"] == 0.0
    lost = measure_scene(Footage(doubled, truth, None, ""))
    assert lost["broken"] == pytest.approx(1 / 3)
    against = measure_scene(Footage(caption, truth, truth, ""))
    assert against["psnr"] == 99
    assert set(COLUMNS) - set(against) == {"motion_kept"}  # of clips only


# --- rows on stock models -------------------------------------------------------------------------------------------


def test_a_stock_row_is_held_against_truth_and_alternatives(board, checkpoints, tmp_path):
    made, _ = board(checkpoints("scenes_sd3"))
    row = picture_row(alternatives=regions.SIDE_BY_SIDE[:1])
    made.play([row], 3)
    assert sorted(made.studio.drawn) == ["areas"] * 3 + ["stock"] * 3  # truth needs no host
    assert made.ledger.column(row, TRUTH, "right").tolist() == [1.0] * 3
    text = tables.page(made, [row], tmp_path)
    assert "stock minus rendered truth" in text
    assert "| 0.000 [0.000, 0.000] | -1.000 [-1.000, -1.000] worse | -1.000 [-1.000, -1.000] worse (areas) |" in text
    assert "| **stock** | 0.000 | 0.500 |" in text
    assert f"| {TRUTH} | 1.000 | 1.000 | 1.000 |  |  |" in text
    assert "3 prompts and seeds, scenes_sd3, pictures of 128 pixels, 4 steps, on: CPU." in text
    assert "ours over stock" not in text
    assert "draws them anew" not in text
    again, _ = board(checkpoints("scenes_sd3"))
    again.play([row], 3)
    assert again.studio.drawn == []


def test_pairs_without_a_value_are_counted(board, checkpoints, tmp_path):
    def measure(footage):
        return {"right": 1.0, "presence": 1.0, "texture": float("nan") if footage.caption == SIDES(1)[0][0] else 0.5}

    made, _ = board(checkpoints("scenes_sd3"))
    row = picture_row(alternatives=regions.SIDE_BY_SIDE[:1], measure=measure)
    made.play([row], 3)
    text = tables.page(made, [row], tmp_path)
    assert "+0.000 [+0.000, +0.000] open, 2 pairs (areas)" in text  # and nan does not keep an arm from being the best


def test_pictures_are_shown_beside_each_other(board, checkpoints, tmp_path):
    made, _ = board(checkpoints("scenes_sd3"))
    row = picture_row(alternatives=regions.SIDE_BY_SIDE[:1])
    made.play([row], 3)
    assert show.files(row) == (show.FOLDER / "pair.png",)
    show.draw(made, row, tmp_path)
    with Image.open(tmp_path / show.FOLDER / "pair.png") as sheet:
        assert sheet.width > 3 * 128
        assert sheet.height > 3 * 128
    assert "![Contact sheet of pair](images/results/pair.png)" in tables.page(made, [row], tmp_path)


def test_a_picture_sheet_holds_the_pictures_and_wraps_long_headings(tmp_path):
    one, two = (numpy.full((count, 128, 128, 3), level, numpy.uint8) for count, level in ((1, 90), (2, 170)))
    path = tmp_path / "sheet.png"
    picture_sheet([Panel("word " * 60, {"one": one, "two": two})], "title", path)
    sheet = numpy.asarray(Image.open(path))[..., 0]
    assert (sheet == 90).sum() >= 128 * 128
    assert (sheet == 170).sum() >= 2 * 128 * 128
    assert sheet.shape[1] < 500
    assert sheet.shape[0] > 40 + 30 + 3 * 16 + 128


# --- absent checkpoints ---------------------------------------------------------------------------------------------


def test_a_row_without_its_checkpoint_says_so_and_others_are_drawn(board, checkpoints, tmp_path):
    made, heard = board(checkpoints("scenes_sd3"))
    here, away = picture_row("here"), Row("away", "x", "", 1, Arm("stock", through()), (), None, (Judge("right", "right"),), world="scenes_sd15")
    made.play([away, here], 2)
    assert made.ledger.complete(here) == [0, 1]
    [line] = [line for line in heard if line.startswith("away")]
    assert "scenes_sd15.safetensors, " in line
    assert "are not there" in line
    text = tables.page(made, [away, here], tmp_path)
    assert "- away: scenes_sd15.safetensors, scenes_sd15_text.safetensors are not among the checkpoints." in text
    assert str(tmp_path) not in text
    with pytest.raises(Absent, match="are not there"):
        made.play([away], 2)


def test_results_outlive_their_checkpoint(board, checkpoints, tmp_path):
    row = picture_row()
    made, _ = board(checkpoints("scenes_sd3"))
    made.play([row], 2)
    (tmp_path / "checkpoints" / "scenes_sd3.safetensors").unlink()
    later, _ = board(tmp_path / "checkpoints")
    later.start_anew([row])
    assert later.ledger.complete(row) == [0, 1]
    assert "*scenes_sd3.safetensors is not among the checkpoints, so whether these are today's results is not known.*" in tables.page(later, [row], tmp_path)


def test_a_broken_checkpoint_stops_before_anything_is_drawn(board, checkpoints):
    folder = checkpoints("scenes_sd3", "scenes_sd15")
    (folder / "scenes_sd15.safetensors").write_bytes(b"no")
    made, _ = board(folder)
    away = Row("away", "x", "", 1, Arm("stock", through()), (), None, (Judge("right", "right"),), world="scenes_sd15")
    with pytest.raises(ValueError, match=r"scenes_sd15\.safetensors is no readable safetensors file"):
        made.play([picture_row(), away], 2)
    assert made.studio.drawn == []


def test_the_list_names_worlds(capsys):
    assert cli.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(row.name in said and row.world in said for row in rows.all_rows())


# --- the studio -----------------------------------------------------------------------------------------------------


class FakeHost:
    """Answers with pictures on disk."""

    process = None

    def __init__(self, folder):
        self.folder, self.runs, self.models = folder, 0, []

    def get(self, path):
        return {"devices": [{"type": "cpu", "name": "cpu"}]}

    def put_model(self, kind, path):
        self.models.append((kind, path.name))

    def run(self, graph, progress=None, entered=None):
        self.runs += 1
        for n in range(2):
            Image.new("RGB", (8, 8), (n + 1, 0, 0)).save(self.folder / f"{n}.png")
        if entered:
            entered(SAMPLER)
            progress(SAMPLER, 1, 1)
        return type("Result", (), {"outputs": {SAVE: {"images": [{"filename": f"{n}.png"} for n in range(2)]}}})

    def file(self, entry):
        return self.folder / entry["filename"]


def test_a_batch_of_pictures_is_kept_whole_and_other_models_are_loaded_first(tmp_path):
    host = FakeHost(tmp_path)
    graph = base(Shot("a red circle on a grey background", 1, 1, 4, "scenes_sd3"))
    with Studio(tmp_path / "clips", host) as studio:
        clip = studio.clip("a", graph, {tmp_path / "one": "vae"})
        assert clip.frames.shape == (2, 8, 8, 3)
        assert clip.frames[:, 0, 0, 0].tolist() == [1, 2]
        assert host.runs == 2  # the first is a rehearsal
        studio.clip("b", graph, {tmp_path / "one": "vae"})
        assert host.runs == 3
        studio.clip("c", graph, {tmp_path / "two": "vae"})
        studio.clip("d", graph, {tmp_path / "one": "vae"})
        assert host.runs == 7
