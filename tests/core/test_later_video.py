"""CogVideoX, Kandinsky 5 and MiniMax H3 where they differ from other families: on hosts that have them (later than ComfyUI 0.3.75; run with COMFYUI_DIR)."""

import inspect
from dataclasses import replace

import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.families import family_of
from attention_loom.core.methods.ditraj import DiTraj
from attention_loom.core.methods.riflex import RIFLEx
from attention_loom.core.methods.ultravico import UltraViCo
from attention_loom.core.tracks import KeyFrame, Track, Tracks
from attention_loom.core.trained import token_stride
from observing import Observer, observe, sentence, understood
from softpag_runs import softpag
from tiny_models import here, tiny
from tiny_models import sample as run

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


def diffusion_of(name):
    return tiny(name).patcher.model.diffusion_model


def sound_too(patcher, model, steps=2):
    """(video, sound) of a model that makes both."""
    import comfy.sample

    latent = tiny_models.with_sound(model.latent, model.facts.sound)
    noise = comfy.sample.prepare_noise(latent, tiny_models.SEED)
    return comfy.sample.sample(patcher, noise, steps, 3.0, "euler", "simple", model.positive, model.negative, latent, disable_pbar=True, seed=1).unbind()


@pytest.mark.parametrize("name", here("cogvideo", "kandinsky5", "minimax_h3"))
def test_with_as_many_video_as_text_tokens(name):
    model = tiny(name, prompts=(18, 18))
    calls = observe(model)[1]
    one = model.facts.calls(18)
    assert [sentence(c) for c in calls] == one * (len(calls) // len(one)) != []


# --- CogVideoX --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", here("cogvideo", "cogvideo_15_i2v"))
def test_cogvideo_by_the_hosts_own_sampler(name):
    """It leaves the noise as large as the model wants it, and counts its steps like the others."""
    import comfy.sample

    void = pytest.importorskip("comfy_extras.nodes_void")
    model = tiny(name)

    def run(patcher):
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 4)
        noise = comfy.sample.prepare_noise(model.latent, 1)
        return comfy.sample.sample_custom(patcher, noise, 3.0, void.VOID_DDIM(), sigmas, model.positive, model.negative, model.latent, disable_pbar=True, seed=1)

    observer = Observer()
    stock, patched = run(model.patcher), attach(model.patcher, observer)
    assert torch.equal(run(patched), stock) and understood(record_of(patched).last)
    assert sorted({c.step for c in observer.seen}) == [0, 1, 2, 3] and {c.steps for c in observer.seen} == {4}
    ours = run(attach(model.patcher, UltraViCo(train_frames=2, alpha=0.3)))
    assert torch.isfinite(ours).all() and not torch.equal(ours, stock)


@pytest.mark.parametrize("name", here("cogvideo_learned_positions"))
def test_cogvideo_with_learned_positions_turns_nothing(name):
    patcher = tiny(name).patcher
    with pytest.raises(LoomError, match="CogVideoX has none"):
        attach(patcher, RIFLEx(k=1))
    with pytest.raises(LoomError, match="CogVideoX has none"):
        attach(patcher, DiTraj(boxes=torch.rand(1, 3, 4), mask_end=0.0))


# --- Kandinsky 5 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rope_options": {"scale_y": 1.5, "scale_x": 0.7, "shift_y": 3.0}}], ids=["", "stretched"])
@pytest.mark.parametrize("name", here("kandinsky5", "kandinsky5_image"))
def test_kandinskys_plane_is_the_hosts(name, options):
    diffusion = diffusion_of(name)
    stock = diffusion.rope_encode_3d(1, 8, 12, device="cpu", dtype=torch.float64, transformer_options=options)[0, :, 0].double()
    y, x = torch.arange(24) // 6, torch.arange(24) % 6
    angle = torch.stack([y, x], -1).double() @ family_of(diffusion).plane(diffusion, options).freqs[:, 0]
    relative = stock @ stock[:1].transpose(-1, -2)
    assert torch.allclose(relative[..., 0, 0], angle.cos(), atol=1e-5) and torch.allclose(relative[..., 1, 0], angle.sin(), atol=1e-5)


@pytest.mark.parametrize("name", here("kandinsky5"))
def test_kandinsky_pros_plane_depends_on_the_size_of_the_picture(name, monkeypatch):
    diffusion = diffusion_of(name)
    monkeypatch.setattr(diffusion, "model_dim", 4096)
    small, large = (diffusion.rope_encode_3d(1, side, 128, dtype=torch.float64)[0, 64, 0] for side in (8, 110))
    assert not torch.allclose(small, large)
    assert family_of(diffusion).plane(diffusion, {}) is None and family_of(diffusion).rope(diffusion) is not None


@pytest.mark.parametrize("name", here("kandinsky5"))
def test_kandinskys_text_cannot_be_exchanged_in_its_cross_attention(name):
    with pytest.raises(LoomError, match="the text of Kandinsky 5 cannot be reached; set mask_end to 0"):
        attach(tiny(name).patcher, DiTraj(boxes=torch.rand(1, 3, 4), background=torch.zeros(1, 3, 3584), foregrounds=(torch.zeros(1, 3, 3584),)))


# --- CogVideoX: what nodes ask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "frames"), [(n, 8 if n == "cogvideo_15" else 4) for n in here("cogvideo", "cogvideo_15")])
def test_a_drawn_path_gets_one_box_per_row_of_tokens(name, frames):
    from attention_loom.nodes import ditraj

    model = tiny(name)
    assert token_stride(model.patcher) == frames
    seen = KeyFrame(0, (0.0, 0.0, 0.5, 0.6)), KeyFrame(16, (0.4, 0.2, 0.9, 0.8))
    text = [[torch.zeros(1, 3, 48), {}]]
    method = ditraj.configure(model.patcher, text, [text], text, Tracks(17, 96, 64, (Track("it", seen),)), mask_end=0.0, rope_end=1.0)
    clip = model._replace(latent=torch.zeros(1, 16, 5, 8, 12))
    patched = attach(model.patcher, method)
    assert torch.isfinite(run(patched, clip)).all()
    assert record_of(patched).last.touched[DiTraj.owner] > 0


@pytest.mark.parametrize("name", here("cogvideo_15"))
def test_a_context_window_is_counted_in_tokens(name):
    import comfy.context_windows as windows

    model = tiny(name, latent=(1, 16, 8, 8, 12))
    patcher = model.patcher.clone()
    patcher.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD), windows.get_matching_fuse_method(windows.ContextFuseMethods.FLAT),
        context_length=4, context_overlap=2, dim=2, **({"causal_window_fix": False} if "causal_window_fix" in inspect.signature(windows.IndexListContextHandler).parameters else {}),
    )  # fmt: skip
    windows.create_prepare_sampling_wrapper(patcher)
    boxes = torch.tensor([[[0, 0, 0.5, 0.6], [0.1, 0.1, 0.6, 0.7], [0.2, 0.2, 0.8, 0.8], [0.4, 0.2, 0.9, 0.8]]], dtype=torch.float64)
    patched = attach(patcher, DiTraj(boxes=boxes, mask_end=0.0, rope_end=1.0, foregrounds=()))
    out, calls, record = observe(model, patched)
    assert torch.isfinite(out).all() and understood(record) and record.touched[DiTraj.owner] > 0
    assert {c.frames for c in calls} == {(0, 1), (1, 2), (2, 3)} and all(c.q.grid[0] == len(c.frames) for c in calls)
    assert not any("within the" in w for w in record.warnings)


@pytest.mark.parametrize(("name", "frames"), [(n, 11 if n == "cogvideo_15" else 13) for n in here("cogvideo", "cogvideo_15")])
def test_presets_know_the_length_it_was_trained_at(name, frames):
    from attention_loom.nodes import riflex, ultravico

    assert ultravico._preset(tiny(name).patcher, "auto", 0).train_frames == frames
    assert riflex.configure(tiny(name).patcher).k == 2


# --- MiniMax H3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", here("minimax_h3", "minimax_h3_references"))
def test_the_sound_is_as_before_and_no_method_counts_it_as_video(name):
    model = tiny(name)
    video, sound = sound_too(model.patcher, model)
    same, alike = sound_too(attach(model.patcher, Observer()), model)
    assert torch.equal(video, same) and torch.equal(sound, alike)
    patched = attach(model.patcher, UltraViCo(train_frames=2, alpha=0.3))
    ours, heard = sound_too(patched, model, steps=1)
    before, unheard = sound_too(model.patcher, model, steps=1)
    assert torch.isfinite(ours).all() and not torch.equal(ours, before)
    assert record_of(patched).last.touched[UltraViCo.owner] > 0
    # queries of the sound are left alone; only by what the video had become does the second block change it
    assert 0 < (heard - unheard).abs().max() < (ours - before).abs().max()


@pytest.mark.parametrize("name", here("minimax_h3_keyframes", "minimax_h3_references"))
def test_a_window_of_the_video_is_laid_out_anew(name, monkeypatch):
    model, given = tiny(name), []
    diffusion = model.patcher.model.diffusion_model
    family = family_of(diffusion)
    geometry = family.geometry
    monkeypatch.setattr(family, "geometry", lambda *args: (given.append(args), geometry(*args))[1])
    observe(model)
    _, x, context, extra = next(args for args in given if "minimax_payload" in args[3])
    whole = geometry(diffusion, x, context, extra)
    part = geometry(diffusion, x, context, extra | {"latent_shapes": [torch.Size((1, 24, 2, 4, 6)), torch.Size((1, 32, 2, 5))]})
    assert part.grid == (2, 2, 3) and (whole.text, whole.reference) == (part.text, part.reference)
    assert part.sequence.spans[:-2] == whole.sequence.spans[:-2]
    assert [(s.kind, s.length) for s in part.sequence.spans[-2:]] == [("other", 10), ("video", 12)]


@pytest.mark.parametrize("name", here("minimax_h3"))
def test_text_that_was_not_refined_before_sampling(name, monkeypatch):
    model = tiny(name)
    monkeypatch.setattr(model.patcher.model.diffusion_model, "preprocess_text_embeds", lambda text: text)
    _, calls, record = observe(model)
    assert understood(record)
    assert [sentence(c) for c in calls][:3] == ["refiner 0 other: text5", *model.facts.calls(5)]


@pytest.mark.parametrize("name", here("minimax_h3"))
def test_blocks_that_write_into_their_input_are_not_taken_over(name):
    with pytest.raises(LoomError):
        attach(tiny(name).patcher, replace(softpag("-1"), reuse=True))
