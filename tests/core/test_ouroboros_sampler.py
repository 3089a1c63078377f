"""The sampler of endless clips on tiny models of every family it takes, through the host's own guider."""

import gc

import host_inprocess
import pytest
import torch

pytestmark = pytest.mark.host
host_inprocess.import_host()

import comfy.model_management  # noqa: E402
import comfy.patcher_extension as extension  # noqa: E402
from attention_loom.core.errors import LoomError  # noqa: E402
from attention_loom.core.samplers import per_frame, prompts, tail  # noqa: E402
from attention_loom.core.samplers.ouroboros import ancestral  # noqa: E402
from endless import Calls, clip_of, guider_of, make, schedule  # noqa: E402
from tiny_models import tiny  # noqa: E402

TAKEN = ("wan", "wan_ti2v", "ltx", "cosmos_predict2", "svd")
REFUSED = {
    "wan_vace": "VaceWanModel", "wan_camera": "CameraWanModel", "hunyuan_video": "HunyuanVideo", "mochi": "AsymmDiTJoint", "cosmos": "GeneralDIT", "flux": "Flux", "sd15": "UNetModel",
    "wan_animate": "AnimateWanModel", "wan_humo": "HumoWanModel",
}  # fmt: skip


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def frames_of(model, clip):
    """The clip as [B, C, T, H, W], whatever the family's layout."""
    return clip.movedim(0, 1)[None] if model.latent.ndim == 4 else clip


# --- families -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAKEN)
def test_makes_a_clip_of_any_length(name):
    model = tiny(name)
    out = frames_of(model, make(model, 5))
    whole = frames_of(model, model.latent)
    assert out.shape == (*whole.shape[:2], 5, *whole.shape[3:])
    assert bool(out.isfinite().all())
    assert float((out[:, :, 1:] - out[:, :, :-1]).abs().amax((0, 1, 3, 4)).min()) > 1e-3  # no frame twice


@pytest.mark.parametrize("name", TAKEN)
def test_uniform_levels_equal_a_scalar_timestep(name):
    """Every frame at one level must be what the host computes for that level."""
    model = tiny(name)
    guider = guider_of(model)
    seen = {}

    class Probe:
        def sample(self, wrap, sigmas, extra, callback, noise, *rest):
            calls = per_frame.Frames(wrap, extra["model_options"], extra["seed"])
            x = noise.movedim(0, 1)[None] if calls.rows else noise
            for sigma in sigmas[[0, 2, -2]]:
                mine = calls.denoised(x, sigma.expand(x.shape[2]), wrap.conds, (0, 1, 2))
                theirs = wrap(noise, sigma.expand(noise.shape[0]), model_options=extra["model_options"], seed=0)
                seen[float(sigma)] = float((frames_of(model, theirs) - mine).abs().max() / theirs.abs().max())
            return noise

    guider.sample(torch.randn(model.latent.shape), model.latent, Probe(), schedule(model.patcher, 6), disable_pbar=True, seed=0)
    assert len(seen) == 3
    assert max(seen.values()) < 1e-5, seen


@pytest.mark.parametrize("name", ["wan", "wan_ti2v", "cosmos_predict2", "ltx"])
def test_each_frame_gets_its_own_level(name, monkeypatch):
    """What the network itself is handed: the noisiest window reads slots 4, 5, 6, which are levels 3, 4, 5."""
    model = tiny(name)
    network, times = type(model.patcher.model.diffusion_model), []
    forward = network._forward
    monkeypatch.setattr(network, "_forward", lambda self, x, t, *args, **kwargs: (times.append(t.clone()), forward(self, x, t, *args, **kwargs))[1])
    make(model, 1, cfg=1.0, latent=clip_of(model))
    levels = model.patcher.get_model_object("model_sampling").timestep(schedule(model.patcher, 6).flip(0)[1:]).float()
    for given, slots in zip(times, ([3, 4, 5], [2, 3, 4], [0, 1, 2], [0, 0, 1]), strict=False):
        per = given[0].flatten().view(3, -1)
        assert torch.allclose(per.mean(1), levels[slots], rtol=1e-5)
        assert bool((per == per[:, :1]).all())


@pytest.mark.parametrize("name", REFUSED)
def test_models_with_one_timestep_per_clip_are_refused_by_class(name):
    model = tiny(name)
    with pytest.raises(LoomError, match=REFUSED[name]):
        make(model, 2)


# --- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [True, False])
def test_a_longer_run_begins_like_a_shorter_one(ahead):
    """A frame depends on what came before it and on the frames behind it in the queue, not on how many were asked for."""
    model = tiny("wan")
    assert torch.equal(make(model, 7, lookahead=ahead)[:, :, :4], make(model, 4, lookahead=ahead))


@pytest.mark.parametrize("ahead", [True, False])
def test_calls_per_frame(ahead):
    model = tiny("wan")
    counts = []
    for frames in (2, 5):
        calls = Calls(model.patcher)
        make(model, frames, patcher=calls.patcher, latent=clip_of(model), lookahead=ahead)
        counts.append(len(calls.times))
    assert counts[1] - counts[0] == 3 * (4 if ahead else 2)


@pytest.mark.parametrize("name", ["wan", "cosmos_predict2", "svd"])
def test_a_tail_without_low_frequencies_is_plain_fifo_bit_for_bit(name):
    model = tiny(name)
    plain, none, some = (make(model, 5, tail=t) for t in (None, tail.Coherent(width=0.0), tail.Coherent()))
    assert torch.equal(plain, none)
    assert not torch.equal(plain, some)


def test_clips_in_a_batch_do_not_mix():
    """Two in a batch, of which the first is alone in another run."""
    model = tiny("wan")
    pair = torch.cat([clip_of(model, 1), clip_of(model, 2)])
    both = make(model, 2, latent=pair, tail=None)
    assert both.shape[0] == 2
    # noise is drawn for the whole batch, so only a change of the other clip can be compared
    other = make(model, 2, latent=torch.cat([clip_of(model, 1), clip_of(model, 3)]), tail=None)
    assert torch.allclose(both[0], other[0], atol=1e-4) and not torch.allclose(both[1], other[1], atol=1e-2)


def test_another_seed_makes_another_clip():
    model = tiny("wan")
    assert not torch.equal(make(model, 3), make(model, 3, seed=5))


def test_a_start_clip_is_used():
    model = tiny("wan")
    a, b = (make(model, 3, latent=clip_of(model, seed)) for seed in (1, 2))
    assert not torch.equal(a, b)


def test_one_model_evaluation_leaves_no_trace():
    """The guider's own prompts and options are what they were; the model samples as before."""
    from tiny_models import sample

    model = tiny("wan")
    before = sample(model.patcher, model)
    make(model, 2)
    assert torch.equal(sample(model.patcher, model), before)


def test_eta_keeps_the_variance_of_the_target():
    sigma, target = torch.tensor([5.0, 2.0, 1.0]), torch.tensor([2.0, 1.0, 0.0])
    down, up = ancestral(sigma, target, 1.0)
    assert torch.allclose(down**2 + up**2, target**2)
    assert torch.equal(ancestral(sigma, target, 0.0)[0], target)


def test_eta_acts_on_models_that_predict_noise_and_is_refused_on_flow():
    svd, wan = tiny("svd"), tiny("wan")
    assert not torch.equal(make(svd, 3, eta=1.0), make(svd, 3))
    with pytest.raises(LoomError, match="flow model"):
        make(wan, 3, eta=0.5)


# --- prompts over time ----------------------------------------------------------------------------------------------


def tagged(model, begins):
    g = torch.Generator().manual_seed(7)
    return [[torch.randn(1, 5, 4096, generator=g), {prompts.FROM: frame}] for frame in begins]


def test_a_prompt_holds_from_its_frame_on():
    model = tiny("wan")
    one, two = tagged(model, (0, 4))
    first, both = model._replace(positive=[one]), model._replace(positive=[one, two])
    a, b = make(first, 8, tail=None), make(both, 8, tail=None)
    changed = [not torch.equal(a[:, :, i], b[:, :, i]) for i in range(8)]
    assert not changed[0] and all(changed[4:])
    c = make(both, 8, tail=None, switch="whole queue")
    changed = [not torch.equal(a[:, :, i], c[:, :, i]) for i in range(8)]
    assert not any(changed[:4]) and all(changed[4:])  # frame 4 itself leaves in the first iteration with the new prompt


def test_a_change_of_prompt_lets_fresh_noise_in():
    model = tiny("wan")
    both = model._replace(positive=tagged(model, (0, 5)))
    assert not torch.equal(make(both, 8), make(both, 8, fresh_tail_at_switch=False))


def test_a_prompt_must_begin_at_0():
    model = tiny("wan")
    with pytest.raises(LoomError, match="begins at frame 4; one must begin at 0"):
        make(model._replace(positive=tagged(model, (4, 9))), 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no prompt"), ("0: a\nand then", "line 2, 'and then'"), ("3: a", "begins at frame 3"), ("0: a\n4: b\n4: c", "two prompts begin at frame 4")],
)
def test_scene_texts_that_cannot_be_read(text, words):
    with pytest.raises(LoomError, match=words):
        prompts.scenes(text)


def test_scene_texts():
    assert prompts.scenes("12: b: c\n\n 0 : a ") == [prompts.Scene(0, "a"), prompts.Scene(12, "b: c")]
    assert prompts.scenes("a fox\nin snow") == [prompts.Scene(0, "a fox in snow")]


# --- stop and go on -------------------------------------------------------------------------------------------------


class Stop:
    """Interrupts the run at a callback, as the host's progress hook does."""

    def __init__(self, at):
        self.at, self.steps, self.totals = at, [], set()

    def __call__(self, step, x0, x, total):
        self.steps.append(step)
        self.totals.add(total)
        if step == self.at:
            comfy.model_management.interrupt_current_processing()


def test_progress_knows_the_end():
    model = tiny("wan")
    empty, given = Stop(None), Stop(None)
    make(model, 4, callback=empty)
    make(model, 4, callback=given, latent=clip_of(model))
    assert empty.steps == list(range(6 + 3 + 4)) and empty.totals == {13}  # 6 steps of a start clip, 3 of warm-up, 4 frames
    assert given.steps == list(range(3 + 4)) and given.totals == {7}


def test_stopping_keeps_what_has_left_the_queue():
    model = tiny("wan")
    whole = make(model, 6, latent=clip_of(model))
    out = make(model, 6, latent=clip_of(model), callback=Stop(3 + 2))
    assert torch.equal(out, whole[:, :, :3])
    assert not comfy.model_management.processing_interrupted()


@pytest.mark.parametrize(("at", "keep"), [(1, True), (5, False)])
def test_stopping_early_or_on_demand_cancels(at, keep):
    model = tiny("wan")
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        make(model, 6, latent=clip_of(model), callback=Stop(at), keep_on_stop=keep)


@pytest.mark.parametrize("name", ["wan", "svd"])
@pytest.mark.parametrize("stop", [1, 5])
def test_going_on_from_a_file_is_bit_exact(tmp_path, name, stop):
    model = tiny(name)
    file = tmp_path / "q.safetensors"
    whole = frames_of(model, make(model, 7))
    first = 0
    try:
        first = frames_of(model, make(model, 7, save=file, callback=Stop(6 + 3 - 1 + stop if stop > 1 else 6 + 1))).shape[2]
    except comfy.model_management.InterruptProcessingException:
        assert stop == 1  # in the warm-up: nothing has left yet
    rest = frames_of(model, make(model, 7 - first, resume=file, save=file))
    assert torch.equal(rest, whole[:, :, first:])
    assert (first == 5) == (stop == 5)


def test_a_file_can_be_gone_on_from_again_and_again(tmp_path):
    model = tiny("wan")
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    parts = [make(model, 2, save=files[0]), make(model, 2, resume=files[0], save=files[1]), make(model, 3, resume=files[1])]
    assert torch.equal(torch.cat(parts, 2), make(model, 7))
    assert not list(tmp_path.glob("*.part"))


def test_files_that_do_not_fit_are_refused(tmp_path):
    model = tiny("wan")
    file = tmp_path / "q.safetensors"
    make(model, 1, save=file)
    wide = torch.zeros(1, 16, 3, 4, 8)
    for more, words in (
        ({"resume": tmp_path / "none.safetensors"}, "there is no queue file none.safetensors"),
        ({"resume": file, "partitions": 3}, "made with partitions 2 and this run has 3"),
        ({"resume": file, "lookahead": False}, "made with lookahead True"),
        ({"resume": file, "latent": wide}, "holds latents of 6 x 4"),
        ({"resume": file, "sigmas": schedule(model.patcher, 6, "normal")}, "another noise schedule"),
    ):
        with pytest.raises(LoomError, match=words):
            make(model, 1, **more)
    with pytest.raises(LoomError, match="made with model WanModel"):
        make(tiny("cosmos_predict2"), 1, resume=file, sigmas=schedule(model.patcher, 6))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(LoomError, match="cannot be read as a queue file"):
        make(model, 1, resume=tmp_path / "x.safetensors")


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_assumes_one_noise_level_is_refused():
    model = tiny("wan")
    windows = model.patcher.clone()
    windows.model_options["context_handler"] = object()
    cached = model.patcher.clone()
    cached.model_options["transformer_options"]["easycache"] = object()
    for more, words in (
        ({"mask": torch.ones(1, 1, 3, 4, 6)}, "noise mask"),
        ({"patcher": windows}, "context windows"),
        ({"patcher": cached}, "step cache"),
        ({"window": 4}, "has 3 latent frames and the window 4"),
        ({"sigmas": schedule(model.patcher, 5)}, "exactly 3 x 2 = 6"),
        ({"window": 1}, "at least 2"),
    ):
        with pytest.raises(LoomError, match=words):
            make(model, 1, **more)
    with pytest.raises(LoomError, match="1 or more"):
        make(model, 0)


@pytest.mark.parametrize(
    ("name", "words"), [("wan_i2v", "c_concat"), ("wan_phantom", "time_dim_concat"), ("wan_fun_reference", "reference_latent"), ("ltx_guides", "keyframe_idxs|denoise_mask")]
)
def test_conditions_of_single_frames_are_refused(name, words):
    model = tiny(name)
    with pytest.raises(LoomError, match=words):
        make(model, 1)


def test_pictures_and_missing_noise_are_refused():
    from attention_loom.core.samplers.ouroboros import Ouroboros, Settings

    model = tiny("wan")
    zeros = torch.zeros_like(model.latent)
    with pytest.raises(LoomError, match="neither noise nor a start clip"):
        guider_of(model).sample(zeros, zeros, Ouroboros(Settings(1, partitions=2)), schedule(model.patcher, 6), disable_pbar=True, seed=0)
    picture = torch.zeros(1, 16, 4, 6)
    with pytest.raises(LoomError, match="a picture; an endless clip needs a video latent"):
        guider_of(model).sample(picture, picture, Ouroboros(Settings(1, window=3, partitions=2)), schedule(model.patcher, 6), disable_pbar=True, seed=0)


def test_a_window_beyond_the_trained_length_needs_a_choice(monkeypatch):
    from attention_loom.core import trained

    model = tiny("wan")
    monkeypatch.setattr(trained, "known", lambda patcher: trained.Trained(((832, 480, 5),)))  # 2 latent frames
    with pytest.raises(LoomError, match="a window of 3 latent frames was given and this model was trained on 2"):
        make(model, 1)
    assert make(model, 1, longer_window=True).shape[2] == 1


def test_methods_that_follow_one_latent_are_refused():
    from attention_loom.core.attach import attach
    from attention_loom.core.methods.ultravico import UltraViCo
    from attention_loom.core.samplers import checks

    model = tiny("wan")
    assert make(model, 1, patcher=attach(model.patcher, UltraViCo(train_frames=2))).shape[2] == 1

    from attention_loom.core.methods.inspector import Inspector

    with pytest.raises(LoomError, match="reads chosen steps"):
        checks.check_methods((Inspector(),))


def test_a_broken_model_stops_the_run_and_says_where():
    model = tiny("wan")
    patcher = model.patcher.clone()

    def spoil(executor, x, t, *args, **kwargs):
        out, queue = executor(x, t, *args, **kwargs), next(a for a in args if isinstance(a, dict))["loom_queue"]
        return out * float("nan") if (queue.number, queue.iteration) == (2, 1) else out

    patcher.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "zz_test", spoil)
    with pytest.raises(LoomError, match=r"in iteration 2, slot 4 \(noise level 3 of 6, sigma 0\."):
        make(model, 4, patcher=patcher, latent=clip_of(model), cfg=1.0)


# --- memory ---------------------------------------------------------------------------------------------------------


def live_bytes(without):
    """Bytes of all tensors that are alive and no parameters, each storage once, less the storages of ``without``."""
    gc.collect()
    known = {t.untyped_storage().data_ptr() for t in without}
    found = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor:
            storage = thing.untyped_storage()
            if storage.data_ptr() not in known:
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def test_memory_does_not_grow_with_the_clip():
    """50 and 500 frames: what is alive in the last model call, beside the model and the frames already made, within 2 %."""
    model = tiny("wan", latent=(1, 16, 2, 4, 6))
    weights = list(model.patcher.model.parameters()) + list(model.patcher.model.buffers())
    peaks = {}
    for frames in (50, 500):
        patcher = model.patcher.clone()

        def weigh(executor, x, *args, frames=frames, **kwargs):
            options = next(a for a in args if isinstance(a, dict))
            if options["loom_queue"].iteration == frames - 1:  # window 2, one partition: no warm-up
                made = (frames - 1) * x[:, :, :1].nelement() * 4
                peaks[frames] = max(peaks.get(frames, 0), live_bytes(weights) - made)
            return executor(x, *args, **kwargs)

        patcher.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "zz_test", weigh)
        out = make(model, frames, patcher=patcher, cfg=1.0, latent=clip_of(model)[:, :, :2], partitions=1, lookahead=False)
        assert out.shape[2] == frames
        del out
    assert peaks[500] == pytest.approx(peaks[50], rel=0.02), peaks
