"""UltraViCo and RIFLEx on a tiny model of every video family: they reach the video's attention, and only beyond the trained length."""

import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.methods.riflex import RIFLEx
from attention_loom.core.methods.ultravico import UltraViCo

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]
VIDEO = ["wan", "wan_vace", "hunyuan_video", "hunyuan_video_15", "ltx", "mochi", "cosmos", "cosmos_predict2"]
VIDEO += tiny_models.here("cogvideo", "cogvideo_15_i2v", "kandinsky5", "minimax_h3", "minimax_h3_keyframes")
PICTURE = ["flux", "sd3", "sd15"]
ROTARY = ["wan", "hunyuan_video", "ltx", *tiny_models.here("cogvideo", "kandinsky5")]


def names(wanted):
    """The recipes asked for; a renamed recipe fails here instead of quietly not being tested."""
    missing = [n for n in wanted if n not in tiny_models.NAMES]
    assert not missing, f"{missing} not among {tiny_models.NAMES}"
    return wanted


@pytest.mark.parametrize("name", names(VIDEO))
def test_ultravico_reaches_the_video(name):
    model = tiny_models.tiny(name)
    frames = model.facts.grid[0]
    stock = tiny_models.sample(model.patcher, model)
    within = attach(model.patcher, UltraViCo(train_frames=frames, alpha=0.3))
    assert torch.equal(stock, tiny_models.sample(within, model))
    beyond = attach(model.patcher, UltraViCo(train_frames=2, alpha=0.3))
    ours = tiny_models.sample(beyond, model)
    run = record_of(beyond).last
    assert torch.isfinite(ours).all()
    assert not torch.equal(stock, ours)
    assert run.touched[UltraViCo.owner] > 0
    assert {e.kind for e in run.entries if e.planned} <= {"self", "joint"}
    assert torch.equal(stock, tiny_models.sample(model.patcher, model)), "the model itself is as before"


@pytest.mark.parametrize("name", names(ROTARY))
def test_riflex_reaches_the_video(name):
    model = tiny_models.tiny(name)
    patched = attach(model.patcher, RIFLEx(k=1, strength=0.5))
    shape = list(model.latent.shape)
    shape[2] = 8  # longer than the period of the fastest frequency, 2 pi frames or less
    longer = model._replace(latent=torch.zeros(shape))
    assert not torch.equal(tiny_models.sample(model.patcher, longer), tiny_models.sample(patched, longer))
    assert record_of(patched).last.touched[RIFLEx.owner] > 0


@pytest.mark.parametrize("name", names(PICTURE))
def test_picture_models_are_refused_when_the_node_runs(name):
    with pytest.raises(LoomError, match="needs a video model"):
        attach(tiny_models.tiny(name).patcher, UltraViCo(train_frames=21))
    with pytest.raises(LoomError, match="rotary frequencies of time"):
        attach(tiny_models.tiny(name).patcher, RIFLEx(k=1))
