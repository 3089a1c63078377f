"""LTX-2, video and sound in one model: on hosts that have it (later than ComfyUI 0.3.75; run with COMFYUI_DIR)."""

import inspect

import host_inprocess
import later_hosts
import pytest
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.families import family_of
from attention_loom.core.families.ltx_av import LTXAV
from attention_loom.core.methods.riflex import frame_times
from attention_loom.core.methods.ultravico import UltraViCo
from attention_loom.kernels.plan import Rotation
from observing import Observer, sentence, understood
from tiny_models import SEED, randomise

pytestmark = [
    pytest.mark.host,
    pytest.mark.usefixtures("host"),
    pytest.mark.skipif(not (host_inprocess.host_dir() / "comfy" / "ldm" / "lightricks" / "av_model.py").is_file(), reason="this host has no LTX-2"),
]

CONFIG = dict(
    image_model="ltxav", num_layers=2, attention_head_dim=32, num_attention_heads=2, cross_attention_dim=64, caption_channels=48, audio_attention_head_dim=16,
    audio_num_attention_heads=2, audio_cross_attention_dim=32, connector_attention_head_dim=24, connector_num_attention_heads=2, connector_num_layers=1,
    use_middle_indices_grid=True, rope_type="split",
)  # fmt: skip
GRID, STEPS = (7, 2, 3), 9
"""Latent frames of the video, and time steps of the sound."""
VIDEO, SOUND = "video7x2x3", "other9"
BLOCK = [f"self: {VIDEO}", f"cross: {VIDEO} | text5", f"other: {SOUND}", f"other: {SOUND} | text5", f"other: {VIDEO} | {SOUND}", f"other: {SOUND} | {VIDEO}"]


@pytest.fixture(scope="module")
def patcher(host):
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.LTXAV(dict(CONFIG))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    randomise(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def run(patcher, text=1.0, sound=True, steps=2):
    """(video, sound) sampled by the host's own loop; text: a factor on the prompt."""
    import comfy.nested_tensor
    import comfy.sample

    g = torch.Generator().manual_seed(SEED)
    parts = [torch.zeros(1, 128, *GRID), torch.zeros(1, 8, STEPS, 16)]
    latent = comfy.nested_tensor.NestedTensor(parts) if sound else parts[0]
    prompts = [[[torch.randn(1, 5, 96, generator=g) * factor, {"attention_mask": torch.ones(1, 5, dtype=torch.long)}]] for factor in (text, 1.0)]
    noise = comfy.sample.prepare_noise(latent, SEED)
    out = comfy.sample.sample(patcher, noise, steps, 3.0, "euler", "simple", *prompts, latent, disable_pbar=True, seed=SEED)
    return out.unbind() if sound else (out, None)


def observed(patcher, **more):
    observer = Observer()
    patched = attach(patcher, observer)
    return run(patched, **more), observer.seen, record_of(patched).last


def test_every_call_is_recognised_and_nothing_changes(patcher):
    assert isinstance(family_of(patcher.model.diffusion_model), LTXAV)
    video, sound = run(patcher)
    (same, alike), calls, record = observed(patcher)
    assert torch.equal(video, same) and torch.equal(sound, alike)
    assert understood(record) and record.grid == GRID
    one = [f"block {i} {call}" for i in range(2) for call in BLOCK]
    assert [sentence(c) for c in calls] == one * (len(calls) // len(one)) != []


def test_a_video_without_sound(patcher):
    _, calls, record = observed(patcher, sound=False)
    assert understood(record)
    assert {sentence(c).split(" ", 2)[2] for c in calls} == set(BLOCK[:2])


@pytest.mark.parametrize(("left_out", "kept"), [("run_ax", [0, 1, 4]), ("a2v_cross_attn", [0, 1, 2, 3, 5]), ("v2a_cross_attn", [0, 1, 2, 3, 4])])
def test_what_other_nodes_leave_out(patcher, left_out, kept):
    clone = patcher.clone()
    clone.model_options["transformer_options"] = clone.model_options["transformer_options"] | {left_out: False}
    _, calls, record = observed(clone)
    assert understood(record)
    assert [sentence(c) for c in calls][: len(kept)] == [f"block 0 {BLOCK[i]}" for i in kept]


def test_self_attention_left_out_in_a_block(patcher):
    import comfy.ldm.lightricks.model

    if "stg_skip_self_attn" not in inspect.getsource(comfy.ldm.lightricks.model):
        pytest.skip("this host leaves out no self-attention")
    clone = patcher.clone()
    clone.model_options["transformer_options"] = clone.model_options["transformer_options"] | {"stg_self_attn_blocks": (1,)}
    _, calls, record = observed(clone)
    assert understood(record)
    rest = [BLOCK[i] for i in (1, 3, 4, 5)]
    assert [sentence(c) for c in calls][:10] == [f"block 0 {call}" for call in BLOCK] + [f"block 1 {call}" for call in rest]


class Turn(Observer):
    """One temporal frequency of the video at twice its speed."""

    owner = "turn"

    def wants(self, call):
        return call.kind == "self"

    def contribute(self, call, draft):
        axis = call.rope
        index = len(axis.per_frame) // 2
        freqs = (axis.pair_of == index).float()[None] * float(axis.per_frame[index])
        draft.rotate(self.owner, Rotation(*(frame_times(layout, axis, "cpu") for layout in (call.q, call.k)), freqs, axis.pairing))


def test_relative_rotation_equals_changing_the_hosts_table(patcher, monkeypatch):
    """Pairs of halves, frames by their middle: as this model's file asks for."""
    diffusion = patcher.model.diffusion_model
    axis = family_of(diffusion).rope(diffusion)
    index = len(axis.per_frame) // 2
    original = diffusion._precompute_freqs_cis
    found = (axis.pair_of == index).nonzero()

    def precompute(grid, *args, **kwargs):
        table = original(grid, *args, **kwargs)
        if grid.shape[1] != 3:  # of the sound
            return table
        moved = grid.clone()
        moved[:, 0] *= 2
        faster = original(moved, *args, **kwargs)

        def splice(rotations, axis):
            for head, pair in found.tolist():
                rotations[:, :, head, pair] = faster[0][:, :, head, pair]
            return rotations

        return later_hosts.on_ltx_table(table, splice)

    stock = run(patcher, steps=1)[0]
    patched = attach(patcher, Turn())
    ours = run(patched, steps=1)[0]
    assert record_of(patched).last.touched["turn"] > 0
    monkeypatch.setattr(diffusion, "_precompute_freqs_cis", precompute)
    theirs = run(patcher, steps=1)[0]
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5 < float((stock - theirs).norm() / theirs.norm())


def test_ultravico_reaches_the_video_and_only_its_self_attention(patcher):
    patched = attach(patcher, UltraViCo(train_frames=3))
    video, _ = run(patched)
    record = record_of(patched).last
    assert not torch.equal(video, run(patcher)[0])
    changed = [e for e in record.entries if e.planned]
    assert changed and {e.kind for e in changed} == {"self"}


def test_head_guidance_reaches_the_video(patcher):
    from softpag_runs import softpag

    video, _ = run(patcher)
    patched = attach(patcher, softpag("-1"))
    guided, sound = run(patched)
    assert torch.isfinite(guided).all() and torch.isfinite(sound).all() and not torch.equal(guided, video)
    assert understood(record_of(patched).last)
