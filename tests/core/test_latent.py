"""Gradients through the host's own models: exact, without a trace left behind, written where the sampler sees them."""

import copy
from dataclasses import dataclass, field

import host_inprocess
import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.columns import Columns, columns
from attention_loom.core.errors import LoomError
from attention_loom.core.families import family_of
from attention_loom.core.methods.guided import LatentMethod
from tiny_models import sample as run
from tiny_models import tiny

pytestmark = pytest.mark.host

READ = {"sd15": 5, "sd3": 1, "flux": 2}
"""Place of the block whose maps are read, in order of execution."""
FAMILIES = ("sd15", "sd3", "flux", "qwen_image", "lumina2", "wan")


@pytest.fixture(scope="module", autouse=True)
def host():
    host_inprocess.import_host()


@pytest.fixture(autouse=True)
def as_the_server_does(host):
    with torch.inference_mode():
        yield


@dataclass(frozen=True)
class Push(LatentMethod):
    """Asks for a gradient at every step, keeps what it saw, and moves the latent by a constant."""

    owner = "push"
    amount: float = 0.0
    read: tuple[int, ...] = ()
    groups: tuple = ((1, 2), (3,))
    look: bool = False
    seen: list = field(default_factory=list, compare=False)

    def prepare(self, family, model, grid, memory):
        memory["wanted"] = Columns(frozenset(cross_blocks(family, model, self.read)), self.groups)

    def before(self, step):
        if self.amount:
            gradient, losses = step.gradient(step.memory["wanted"], lambda maps: (maps * weights(maps)).flatten(1).sum(1))
            self.seen.append((step.at, step.x.clone(), gradient, losses))
            step.move(step.x + self.amount * gradient / gradient.abs().max())
        if self.look:
            step.memory["collector"] = step.watch(step.memory["wanted"])

    def after(self, step):
        if self.look:
            self.seen.append((step.at, step.memory.pop("collector").maps))


def cross_blocks(family, model, ordinals):
    """Those asked for, or all of one size of map: the finest layers of a UNet, everything elsewhere."""
    blocks = family.blocks(model)
    if ordinals:
        return [b for b in blocks if b.ordinal in ordinals]
    return [b for b in blocks if b.level == min(c.level for c in blocks)]


def weights(maps):
    make = torch.Generator().manual_seed(3)
    with torch.inference_mode(False):
        return torch.randn(maps.shape[1:], generator=make, dtype=torch.float64).to(maps)


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_indicator_columns_are_the_columns_of_an_explicit_softmax(bias):
    with torch.inference_mode(False):
        make = torch.Generator().manual_seed(0)
        q, k = (torch.randn(2, n, tokens, 8, generator=make, dtype=torch.float64, requires_grad=True) for n, tokens in ((4, 9), (2, 13)))
        extra = torch.randn(2, 1, 13, generator=make, dtype=torch.float64) if bias else None
        groups = torch.zeros(11, 13)
        groups[torch.arange(11), torch.arange(11) + 1] = 1
        groups[0, 5] = 1
        found = columns(q, k, groups, bias=extra, scale=0.3)
        s = q @ k.repeat_interleave(2, 1).mT * 0.3 + (0 if extra is None else extra[:, :, None])
        truth = torch.einsum("bhik,gk->bgi", s.softmax(-1), groups.double()) / 4
        w = torch.randn(truth.shape, generator=make, dtype=torch.float64)
        assert (found - truth).abs().max() < 1e-12
        for mine, theirs in zip(torch.autograd.grad((found * w).sum(), (q, k)), torch.autograd.grad((truth * w).sum(), (q, k)), strict=True):
            assert (mine - theirs).abs().max() < 1e-12


# --- gradients through whole models ----------------------------------------------------------------------------------


def doubled(name):
    """A tiny model in fp64, with its positions in fp64 as well."""
    model = tiny(name)
    base = tiny_models._model.__wrapped__(name).model.double()  # one of its own: other tests' runs leave their hooks on the shared one until the next run
    base.diffusion_model.dtype = torch.float64
    base.manual_cast_dtype = None
    patcher = model.patcher.__class__(base, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
    if hasattr(base.diffusion_model, "pe_embedder"):
        embed = base.diffusion_model.pe_embedder.forward
        base.diffusion_model.pe_embedder.forward = lambda ids: embed(ids).double()
    return model._replace(patcher=patcher)


@pytest.mark.parametrize("name", READ)
def test_gradient_equals_finite_differences_in_fp64(name, monkeypatch):
    from comfy.model_management import InterruptProcessingException

    model = doubled(name)
    blocks = (READ[name],)
    patched = attach(model.patcher, Push(amount=0.0, read=blocks))
    captured = {}

    def before(self, step):
        captured["step"] = step
        x = step.x.double()
        step.x = x
        step._sigma = step._sigma.double()
        loss = lambda maps: (maps * weights(maps)).flatten(1).sum(1)  # noqa: E731
        gradient, _ = step.gradient(step.memory["wanted"], loss)
        make = torch.Generator().manual_seed(5)
        h = 1e-4 * float(x.std())
        for _ in range(3):
            d = torch.randn(x.shape, generator=make, dtype=torch.float64)
            values = []
            for sign in (1, -1):
                step.x = x + sign * h * d
                values.append(float(step.gradient(step.memory["wanted"], loss)[1].sum()))
            captured.setdefault("pairs", []).append(((values[0] - values[1]) / (2 * h), float((gradient * d).sum())))
        step.x = x
        raise InterruptProcessingException

    monkeypatch.setattr(Push, "before", before)
    with pytest.raises(InterruptProcessingException):
        run(patched, model, steps=3)
    pairs = torch.tensor(captured["pairs"])
    assert pairs.abs().max() > 1e-6, "the loss must depend on the latent, or this proves nothing"
    assert ((pairs[:, 0] - pairs[:, 1]).abs() <= 1e-6 * pairs.abs().max()).all(), pairs


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_a_gradient_and_is_left_as_found(name):
    model = tiny(name)
    base = model.patcher.model
    before = {k: (id(p), p.is_inference(), p.requires_grad, p._version if not p.is_inference() else None) for k, p in (*base.named_parameters(), *base.named_buffers())}
    values = {k: p.clone() for k, p in base.named_parameters()}
    stock = run(model.patcher, model)
    method = Push(amount=0.5)
    pushed = run(attach(model.patcher, method), model)
    assert len(method.seen) == 2
    for _, _, gradient, losses in method.seen:
        assert gradient.isfinite().all() and float(gradient.abs().max()) > 0 and losses.shape == (1,)
        assert not gradient.is_inference() and not gradient.requires_grad
    assert not torch.equal(stock, pushed)
    after = {k: (id(p), p.is_inference(), p.requires_grad, p._version if not p.is_inference() else None) for k, p in (*base.named_parameters(), *base.named_buffers())}
    assert after == before
    assert all(torch.equal(values[k], p) for k, p in base.named_parameters())
    assert torch.equal(stock, run(model.patcher, model))


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
def test_looking_changes_no_bit_and_reads_the_positive_prompt(name):
    model = tiny(name)
    method = Push(look=True)
    patched = attach(model.patcher, method)
    assert torch.equal(run(model.patcher, model), run(patched, model))
    batched = [maps for _, maps in method.seen]
    assert len(batched) == 2 and all(m.shape[:2] == (1, 2) for m in batched)
    method.seen.clear()
    run(patched, model, cfg=1.0)  # the positive prompt alone in the batch: its first maps must be the same
    assert (method.seen[0][1] - batched[0]).abs().max() < 1e-5


def test_prompts_of_unequal_length_share_a_batch_and_their_repeats_are_one_word():
    model = tiny("sd15", prompts=(4, 8))
    method = Push(look=True)
    run(attach(model.patcher, method), model)
    first = method.seen[0][1]
    method.seen.clear()
    run(attach(model.patcher, method), model, cfg=1.0)
    assert (method.seen[0][1] - first).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_activations_in_system_memory_give_the_same_gradient(name, monkeypatch):
    from attention_loom.core import differentiable

    model, sizes, original = tiny(name), [], differentiable._moving_out

    def counting(module):
        out, back = original(module)
        return lambda kept: (sizes.append(out(kept)[0] is None), out(kept))[1], back

    monkeypatch.setattr(differentiable, "_moving_out", counting)
    there, here = Push(amount=0.5, spare_memory=True), Push(amount=0.5)
    run(attach(model.patcher, there), model, steps=1)
    assert any(sizes) and not all(sizes), "weights stay, activations go"
    seen = len(sizes)
    run(attach(model.patcher, here), model, steps=1)
    assert len(sizes) == seen
    difference = (there.seen[0][2] - here.seen[0][2]).abs().max()
    assert difference <= 1e-5 * here.seen[0][2].abs().max(), "also where the model changes activations in place"


def test_tensors_changed_in_place_are_never_taken_for_each_other():
    """torch alone takes some of these for each other: they follow one another at one address."""
    from attention_loom.core.differentiable import gradients

    for count in (5, 9, 17, 33):
        leaf, total, wanted = torch.full((64, 64), 2.0, requires_grad=True), 0.0, 0.0
        with gradients():
            for k in range(1, count):
                a = leaf * float(k)
                total = total + (a**2).sum()
                wanted += 4.0 * k * k
                litter = [object() for _ in range(k % 3)]
                a.add_(1.0)
                del a, litter
            (gradient,) = torch.autograd.grad(total, leaf)
        assert torch.equal(gradient, torch.full_like(gradient, wanted))


def test_the_gradient_forward_stops_after_the_last_block_it_reads():
    model = tiny("flux")
    early, late = (Push(amount=0.1, read=(b,)) for b in (0, 2))
    seen = []

    def counting(func, *args, **kwargs):
        seen.append(torch.is_grad_enabled() and not torch.is_inference_mode_enabled())
        return func(*args, **kwargs)

    import comfy.ldm.modules.attention as attention

    plain = attention.attention_pytorch.__wrapped__
    attention.attention_pytorch.__wrapped__ = lambda *a, **k: counting(plain, *a, **k)
    try:
        counts = []
        for method in (early, late):
            seen.clear()
            run(attach(model.patcher, method), model, steps=1)
            counts.append(sum(seen))
    finally:
        attention.attention_pytorch.__wrapped__ = plain
    assert counts == [1, 3]


# --- where and when the latent changes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("sd15", "heun"), ("sd15", "dpmpp_2m"), ("sd15", "dpmpp_2s_ancestral")]
    + [("sd3", s) for s in ("euler", "heun", "dpmpp_2m", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "er_sde", "ddim")],
)
def test_each_scheduled_step_is_guided_once_at_the_state_of_the_sampler(sampler, name):
    model, states = tiny(name), []
    method = Push(amount=0.05)
    run(attach(model.patcher, method), model, steps=3, sampler=sampler, callback=lambda i, denoised, x, total: states.append(x.clone()))
    assert [at.index for at, *_ in method.seen] == [0, 1, 2]
    assert all(at.steps == 3 and at.flow == (name == "sd3") for at, *_ in method.seen)
    for (_, x, gradient, _), state in zip(method.seen, states, strict=True):
        assert torch.allclose(state, x + 0.05 * gradient / gradient.abs().max(), atol=1e-6), "the sampler goes on from the new latent"


@pytest.mark.parametrize(("settings", "words"), [({"sampler": "uni_pc"}, "uni_pc"), ({"sampler": "dpm_fast"}, "dpm_fast"), ({"noise_mask": True}, "noise mask")])
def test_runs_whose_state_cannot_be_reached_are_refused_before_the_first_step(settings, words):
    model = tiny("sd15")
    method = Push(amount=0.1)
    if settings.pop("noise_mask", False):
        settings["noise_mask"] = torch.ones(1, 1, 4, 6)
    with pytest.raises(LoomError, match=words):
        run(attach(model.patcher, method), model, **settings)
    assert not method.seen


def test_a_sampler_that_works_on_a_copy_is_found_out():
    import comfy.samplers

    def odd(model, x, sigmas, extra_args=None, callback=None, disable=None):
        denoised = model(x.clone(), sigmas[0] * x.new_ones(len(x)), **extra_args)
        callback({"i": 0, "denoised": denoised, "x": x, "sigma": sigmas[0], "sigma_hat": sigmas[0]})
        return denoised

    model = tiny("sd15")
    patched = attach(model.patcher, Push(amount=0.1))
    sampler, sigmas = comfy.samplers.KSAMPLER(odd), torch.tensor([14.6, 1.0, 0.0])
    with pytest.raises(LoomError, match="another copy"):
        comfy.samplers.sample(
            patched, torch.randn(1, 4, 4, 6), model.positive, model.negative, 3.0, torch.device("cpu"), sampler, sigmas, latent_image=model.latent, disable_pbar=True
        )


def test_a_batch_is_its_samples_apart():
    import comfy.sample

    model = tiny("sd15")
    noise = comfy.sample.prepare_noise(torch.zeros(2, 4, 4, 6), 1)

    def gradient(part):
        method = Push(amount=0.5)
        latent = torch.zeros_like(part)
        comfy.sample.sample(attach(model.patcher, method), part, 1, 3.0, "euler", "simple", model.positive, model.negative, latent, disable_pbar=True, seed=1)
        return method.seen[0][2]

    both = gradient(noise)
    for i in range(2):
        assert torch.allclose(both[i], gradient(noise[i : i + 1])[0], atol=1e-4 * float(both[i].abs().max()))


def test_limited_prompts_are_passed_over_and_hooks_refused():
    model = tiny("sd15")
    cond, extra = model.positive[0]
    area = [[cond * 2, extra | {"area": (2, 2, 0, 0)}]]
    whole, both = Push(amount=0.5), Push(amount=0.5)
    run(attach(model.patcher, whole), model, steps=1)
    run(attach(model.patcher, both), model._replace(positive=area + model.positive), steps=1)
    assert torch.allclose(whole.seen[0][2], both.seen[0][2], atol=1e-6)
    with pytest.raises(LoomError, match="whole picture"):
        run(attach(model.patcher, Push(amount=0.5)), model._replace(positive=area), steps=1)


def test_a_control_object_takes_part_as_a_constant():
    from comfy.controlnet import ControlBase

    class Control(ControlBase):
        """Residuals that depend on the latent, through inference weights."""

        def __init__(self):
            super().__init__()
            self.weight = torch.randn(320, 4) * 0.3

        def get_control(self, x, t, cond, batched_number, transformer_options):
            return {"output": [], "middle": [], "input": [torch.einsum("oc,bchw->bohw", self.weight, x)]}

        get_instance_for_deepclone = copy.copy

    model = tiny("sd15")
    cond, extra = model.positive[0]
    guided, plain = Push(amount=0.5), Push(amount=0.5)
    run(attach(model.patcher, guided), model._replace(positive=[[cond, extra | {"control": Control()}]]), steps=1)
    run(attach(model.patcher, plain), model, steps=1)
    assert guided.seen[0][2].isfinite().all()
    assert not torch.allclose(guided.seen[0][3], plain.seen[0][3])


def test_other_methods_of_the_pack_stay_in_force_and_the_report_counts_the_steps():
    model = tiny("sd3")
    method = Push(amount=0.5)
    patched = attach(model.patcher, method)
    run(patched, model)
    report = record_of(patched).last
    assert report.touched == {"push": 2}
    assert not report.state, "nothing outlives the run"
    assert family_of(model.patcher.model.diffusion_model).name == report.family
