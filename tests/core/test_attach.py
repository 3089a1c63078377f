"""Methods on the host's real model class, in this process: clones, chaining, brute-force truth, errors, what is left behind.

The model is the toy world's Wan; the same code runs behind a server in tests/server.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from attention_loom.core.attach import attach, methods_of, record_of
from attention_loom.core.errors import LoomError, UnsupportedModel
from attention_loom.core.families import family_of
from attention_loom.core.methods.base import Method
from attention_loom.core.methods.riflex import RIFLEx
from attention_loom.core.methods.ultravico import UltraViCo
from attention_loom.toyworld.host import CHECKPOINTS, load_host

pytestmark = pytest.mark.host
NATIVE, LONG = 6, 18  # latent frames
GRID = (LONG, 4, 4)


@pytest.fixture(scope="module")
def model():
    load_host()
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(CHECKPOINTS / "toy_wan_t2v.safetensors"))


def sample(model, frames=LONG, steps=2, seed=0, cfg=3.0, callback=None, shape=None):
    """A latent [1, 16, T, 8, 8] by the host's own sampler, prompts of random vectors."""
    import comfy.sample

    with torch.inference_mode():
        make = torch.Generator().manual_seed(1)
        positive, negative = ([[torch.randn(1, 24, 4096, generator=make), {}]] for _ in range(2))
        latent = torch.zeros(shape or (1, 16, frames, 8, 8))
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample(model, noise, steps, cfg, "euler", "simple", positive, negative, latent, seed=seed, disable_pbar=True, callback=callback)


def brute_force(model, cfg, grid=GRID):
    """The paper's rule written down once more, N x N and in fp64, as another pack's override."""
    clone = model.clone()
    frames, y, x = grid
    f = torch.arange(frames * y * x) // (y * x)
    distance = (f[:, None] - f[None, :]).abs()
    far = distance > cfg.train_frames / 2
    gone = (f[:, None] == 0) & (f[None, :] >= cfg.train_frames) if cfg.first_frame else torch.zeros_like(far)

    def override(func, q, k, v, heads, **kwargs):
        if q.shape[1] != len(f) or k.shape[1] != len(f):
            return func(q, k, v, heads, **kwargs)
        q, k, v = (t.double().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        k = k - k.mean(2, keepdim=True) if cfg.center_keys else k
        s = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        s = torch.where(far & (s > 0), cfg.alpha * s, s).masked_fill(gone, float("-inf"))
        return (s.softmax(-1) @ v).transpose(1, 2).flatten(2).float()

    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


@pytest.mark.parametrize("more", [{}, {"first_frame": True}, {"center_keys": False}], ids=["plain", "first_frame", "uncentred"])
def test_whole_model_agrees_with_brute_force(model, more):
    cfg = UltraViCo(train_frames=NATIVE, alpha=0.6, **more)
    ours, truth, stock = sample(attach(model, cfg)), sample(brute_force(model, cfg)), sample(model)
    assert (ours - truth).abs().max() < 2e-4
    assert (stock - truth).abs().max() > 20 * (ours - truth).abs().max(), "the rule must matter, or this test proves nothing"


def test_short_clips_never_enter_the_code(model):
    patched = attach(model, UltraViCo(train_frames=NATIVE, alpha=0.6))
    assert torch.equal(sample(model, NATIVE), sample(patched, NATIVE))
    assert record_of(patched).last.touched == {UltraViCo.owner: 0}


def test_clones_do_not_influence_each_other(model):
    stock = sample(model)
    strong, weak = (attach(model, UltraViCo(train_frames=NATIVE, alpha=a)) for a in (0.4, 0.9))
    first = sample(strong)
    other = sample(weak)
    assert torch.equal(first, sample(strong))
    assert not torch.equal(first, other)
    assert torch.equal(stock, sample(model))
    assert methods_of(model) == ()
    assert record_of(model) is None


def test_off_gives_a_plain_clone(model):
    assert methods_of(attach(model, UltraViCo(train_frames=NATIVE, alpha=1.0))) == ()


def test_the_same_method_again_replaces_the_first(model):
    twice = attach(attach(model, UltraViCo(train_frames=NATIVE, alpha=0.4)), UltraViCo(train_frames=NATIVE, alpha=0.9))
    assert [m.alpha for m in methods_of(twice)] == [0.9]
    assert torch.equal(sample(twice), sample(attach(model, UltraViCo(train_frames=NATIVE, alpha=0.9))))


def test_later_clones_and_deep_copies_keep_the_method(model):
    patched = attach(model, UltraViCo(train_frames=NATIVE, alpha=0.6))
    later = patched.clone()
    assert torch.equal(sample(patched), sample(later))
    options = copy.deepcopy(patched.model_options)["transformer_options"]
    assert methods_of(patched)[0] is options["loom_methods"][0]


def counting(seen):
    def override(func, *args, **kwargs):
        seen.append(func.__name__)
        return func(*args, **kwargs)

    return override


@pytest.mark.parametrize("first", [True, False])
def test_a_foreign_override_before_or_after(model, first):
    seen = []
    cfg = UltraViCo(train_frames=NATIVE, alpha=0.6)
    foreign = model.clone()
    if first:
        foreign.model_options["transformer_options"]["optimized_attention_override"] = counting(seen)
        both = attach(foreign, cfg)
    else:
        both = attach(foreign, cfg)
        both.model_options["transformer_options"]["optimized_attention_override"] = counting(seen)
    assert torch.equal(sample(both), sample(attach(model, cfg)))
    assert len(seen) == 8, "4 blocks x 2 steps of cross-attention"


def test_order_of_our_nodes_does_not_matter(model):
    one = attach(attach(model, RIFLEx(k=2)), UltraViCo(train_frames=NATIVE, alpha=0.6))
    other = attach(attach(model, UltraViCo(train_frames=NATIVE, alpha=0.6)), RIFLEx(k=2))
    assert torch.equal(sample(one), sample(other))


def test_riflex_equals_a_changed_embedding(model):
    """The same frequency changed inside the host's own position embedding: a different place, the same numbers."""
    cfg = RIFLEx(k=2)
    diffusion = model.model.diffusion_model
    embedder = diffusion.rope_embedder

    class Slowed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            object.__setattr__(self, "wrapped", embedder)

        def forward(self, ids):
            stock = embedder(ids)
            angle = ids[..., 0].double() * 0.9 * 2 * torch.pi / LONG
            turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2)).float()
            changed = stock.clone()
            changed[..., cfg.k - 1, :, :] = turn.unsqueeze(1)
            return changed

    truth = model.clone()
    truth.add_object_patch("diffusion_model.rope_embedder", Slowed())
    expected, ours, stock = sample(truth), sample(attach(model, cfg)), sample(model)
    assert (ours - expected).abs().max() < 2e-4
    assert (stock - expected).abs().max() > 20 * (ours - expected).abs().max()


def test_riflex_rests_while_the_clip_fits_its_period(model):
    patched = attach(model, RIFLEx(k=5))  # period 33 frames
    assert torch.equal(sample(model), sample(patched))
    assert any("fit into the period of 33." in e.reason for e in record_of(patched).last.entries)


# --- errors ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(Method):
    owner: ClassVar[str] = "Broken"

    def contribute(self, call, draft):
        raise RuntimeError("a defect in a method")


def test_after_an_exception_the_model_is_as_before(model):
    stock = sample(model)
    broken = attach(model, Broken())
    with pytest.raises(RuntimeError, match="a defect"):
        sample(broken)
    run = record_of(broken).last
    assert run.failed
    assert run.ended is not None
    assert run.state == {}
    assert torch.equal(stock, sample(model))


def test_a_picture_is_refused_before_any_step(model):
    steps = []
    with pytest.raises(LoomError, match="image latent"):
        sample(attach(model, UltraViCo(train_frames=NATIVE)), shape=(1, 16, 1, 8, 8), callback=lambda *a: steps.append(a))
    assert steps == []


def test_a_grid_that_does_not_close_is_said_with_both_numbers(model):
    """A pack that slips four more latent frames into the model behind our back."""
    import comfy.patcher_extension as extension

    patched = attach(model, UltraViCo(train_frames=NATIVE, alpha=0.6))

    def longer(executor, x, *args, **kwargs):
        return executor(torch.cat([x, x[:, :, :4]], 2), *args, **kwargs)[:, :, : x.shape[2]]

    patched.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "foreign", longer)
    with pytest.raises(LoomError, match=r"cannot tell the video tokens of block 0 apart: .*352.*288"):
        sample(patched)


def test_unknown_and_unhookable_models_are_named():
    class Strange(torch.nn.Module):
        pass

    class WanModel_S2V(torch.nn.Module):  # the host's own name
        pass

    with pytest.raises(UnsupportedModel, match=r"Strange is not known .* Wan"):
        family_of(Strange())
    with pytest.raises(UnsupportedModel, match="WanModel_S2V cannot be used: in this ComfyUI its blocks"):
        family_of(WanModel_S2V())


def test_triton_and_chunked_agree_in_the_whole_model(model):
    cfg = dict(train_frames=NATIVE, alpha=0.6)
    chunked = sample(attach(model, UltraViCo(**cfg, backend="chunked")), steps=1, cfg=1.0)
    triton = attach(model, UltraViCo(**cfg, backend="triton"))
    assert (sample(triton, steps=1, cfg=1.0) - chunked).abs().max() < 2e-4
    assert {e.backend for e in record_of(triton).last.entries if e.planned} == {"triton"}
