"""A small scoreboard through a real ComfyUI: graphs run, clocks tick, a second call draws nothing."""

import json
import os

import pytest
from attention_loom.toyworld.host import CHECKPOINTS
from attention_loom.toyworld.scoreboard.__main__ import main
from attention_loom.toyworld.scoreboard.worlds import WORLDS
from PIL import Image

pytestmark = pytest.mark.server
FEW = ["--seeds", "2", "--steps", "3", "--only", "riflex-2x", "sparse-25"]


@pytest.mark.skipif("COMFYUI_DIR" in os.environ, reason="the scoreboard is drawn on the host of `make setup`; nodes of others ask for more inputs")
def test_a_small_scoreboard(host, tmp_path, capsys):
    out, clips = tmp_path / "docs", tmp_path / "clips"
    assert main([*FEW, "--out", str(out)], host=host, clips=clips) == 0
    data = json.loads((out / "results.json").read_text())
    cells = {(row, arm): cell for row, arms in data["rows"].items() for arm, of_arm in arms.items() for cell in of_arm.values()}
    assert len(cells) == 4 + 5
    assert all(len(of_arm) == 2 for arms in data["rows"].values() for of_arm in arms.values())
    assert all(0 < cell["seconds"] < 600 for cell in cells.values())
    assert all(cell["memory_mib"] is None or 100 < cell["memory_mib"] < 1e6 for cell in cells.values())
    assert cells["sparse-25", "draft"]["measures"]["pairs"] < 0.6
    assert cells["sparse-25", "draft"]["measures"]["psnr"] < 60
    assert cells["riflex-2x", "RIFLEx"]["measures"]["psnr"] < 60
    page = (out / "results.md").read_text()
    assert "## riflex-2x" in page
    assert "better" in page or "open" in page
    for picture in ("riflex-2x.png", "riflex-2x.webp", "sparse-25.png", "sparse-25.webp"):
        assert f"images/results/{picture}" in page
        with Image.open(out / "images" / "results" / picture) as found:
            assert found.width > 300

    before = len(host.get("/history"))
    assert main([*FEW, "--out", str(out)], host=host, clips=clips) == 0
    assert len(host.get("/history")) == before
    assert "2 seeds are finished" in capsys.readouterr().out


PICTURES = ("scenes_sd3", "scenes_sd15")


@pytest.mark.skipif(any(not (CHECKPOINTS / file).is_file() for name in PICTURES for file, _ in WORLDS[name].models), reason="the picture models of the second world are not there")
def test_pictures_of_both_models_and_what_the_host_offers(host, tmp_path):
    out = tmp_path / "docs"
    assert main(["--seeds", "2", "--steps", "3", "--only", "sd3-sides", "sd15-two", "--out", str(out)], host=host, clips=tmp_path / "clips") == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert set(rows["sd3-sides"]) == {"rendered truth", "stock", "areas", "areas and whole caption", "masks"}
    assert all(0 < cell["seconds"] < 600 for name, of_arm in rows["sd15-two"].items() if name != "rendered truth" for cell in of_arm.values())
    stock, areas = (rows["sd3-sides"][name]["0"]["measures"] for name in ("stock", "areas"))
    assert stock["sharpness"] != areas["sharpness"]
    page = (out / "results.md").read_text()
    assert "stock minus rendered truth" in page
    for picture in ("sd3-sides.png", "sd15-two.png"):
        assert f"images/results/{picture}" in page
        with Image.open(out / "images" / "results" / picture) as found:
            assert found.height > 2 * 128
