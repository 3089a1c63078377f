"""Entropy scaling: the factor in closed form, on Gaussian logits, and on tiny real models of every kind of attention."""

import math

import host_inprocess
import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.errors import ConflictError, LoomError
from attention_loom.core.families import family_of
from attention_loom.core.methods.entropy_scale import EntropyScale, factor, logit_variance, measured_factor
from attention_loom.core.methods.ultravico import UltraViCo
from attention_loom.core.trained import TABLE, WAN_SIZES, Trained, frame_stride, known, trained_grids
from attention_loom.kernels import AttentionPlan, Modulation, attend, reference_attend

OWNER = EntropyScale.owner


# --- the factor -------------------------------------------------------------------------------------------------------


def test_examples_of_the_paper_rule():
    assert factor(9216, 4096) == pytest.approx(1.0476, abs=5e-5)
    assert factor(576, 256) == pytest.approx(1.0706, abs=6e-5)
    assert factor(1024, 4096) == pytest.approx(0.913, abs=5e-4)
    assert factor(4 * 256, 256) == pytest.approx(1.118, abs=5e-4)
    assert factor(5, 7, 2.0) == pytest.approx(math.log(5) / math.log(7))
    assert factor(4096, 4096) == 1.0


@pytest.mark.parametrize(("n", "t"), [(1, 1), (1, 4096), (4096, 1), (2, 1), (1, 2)])
def test_single_tokens_make_no_infinity(n, t):
    assert 0 < factor(n, t) < 5
    assert torch.isfinite(measured_factor(torch.tensor([0.0, 1.0]), n, t, 1.0)).all()


def entropies(f, q, k):
    p = (f * q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return -(p * p.clamp(min=1e-300).log()).sum(-1)


def test_entropy_of_every_row_falls_as_the_factor_rises():
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(64, 32, generator=g, dtype=torch.float64) for _ in range(2))
    rows = torch.stack([entropies(f, q, k) for f in (0.5, 0.8, 1.0, 1.1, 1.5, 2.0)])
    assert (rows.diff(dim=0) <= 1e-12).all()


def test_gaussian_logits_have_the_entropy_the_derivation_says():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(256, 64, generator=g), torch.randn(4096, 64, generator=g)
    base = float(entropies(1.0, q, k[:1024]).mean())
    for n in (1024, 2048, 4096):
        stock = float(entropies(1.0, q, k[:n]).mean())
        assert stock == pytest.approx(math.log(n) - 0.5, abs=0.05)
        variance = logit_variance(q[None, None], k[None, None, :n], 64**-0.5)
        f = measured_factor(variance, n, 1024, factor(n, 1024))
        assert float(entropies(float(f), q, k[:n]).mean()) == pytest.approx(base, abs=0.15)
        if n > 1024:
            paper = float(entropies(factor(n, 1024), q, k[:n]).mean())
            assert base < paper < stock, "the paper's factor goes the right way, part of the way"


def test_logit_variance_is_that_of_the_logits():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 30, 16, generator=g) + 0.3, torch.randn(2, 2, 50, 16, generator=g) - 0.5
    logits = 0.2 * q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2)
    assert torch.allclose(logit_variance(q, k, 0.2).double(), logits.var(-1, correction=0).mean((0, 2)), rtol=1e-5)


def test_heads_that_cannot_reach_the_entropy_take_the_paper_factor():
    variance = torch.tensor([0.1, 4.0, 1e6])
    f = measured_factor(variance, 64, 256, 0.87)
    assert f[0] == pytest.approx(0.87)
    assert f[1] == pytest.approx(max(0.5, (1 - 2 * math.log(4) / 4) ** 0.5))
    assert f[2] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_on_q_is_a_factor_on_the_scale(dtype):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 16, generator=g).to(dtype) for _ in range(3))
    seen = []

    def dense(q, k, v):
        seen.append(q)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    f = 1.0706
    ours = attend(q, k, v, AttentionPlan(modulation=Modulation(scale=torch.tensor([f]))), dense=dense)
    truth = reference_attend(q, k, v, AttentionPlan(), scale=f * 16**-0.5)
    assert len(seen) == 1
    assert (ours - truth).abs().max() < (2e-6 if dtype == torch.float32 else 2e-2)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strength": -0.1}, "strength -0.1 was given"),
        ({"strength": float("nan")}, "strength nan was given"),
        ({"trained": ((1, 1, 1),)}, "makes 1 token"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(LoomError, match=words):
        EntropyScale(**{"trained": ((1, 64, 64),)} | settings)


def test_an_absurd_factor_is_refused_with_its_numbers():
    with pytest.raises(LoomError, match=r"2 keys against 1000000 in training make a factor of 0.0112"):
        EntropyScale(trained=((1, 1000, 1000),), strength=3.0).factor(2, 1000000)


def test_strength_zero_is_off():
    assert EntropyScale(trained=((1, 64, 64),), strength=0.0).off


# --- on real models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def host():
    host_inprocess.import_host()
    with torch.inference_mode():
        yield


def spied(patcher):
    """(clone, calls): every attention call as (q tokens, k tokens, q), by another pack's override below ours."""
    clone, calls = patcher.clone(), []

    def override(func, q, k, v, heads, *args, **kwargs):
        tokens = 2 if kwargs.get("skip_reshape") else 1
        calls.append((q.shape[tokens], k.shape[tokens], q.clone().reshape(-1)))
        return func(q, k, v, heads, *args, **kwargs)

    clone.model_options["transformer_options"] = dict(clone.model_options.get("transformer_options", {}), optimized_attention_override=override)
    return clone, calls


def factors(model, method, patcher=None):
    """[(q tokens, k tokens, factor on q)] of one model call. The first changed call tells exactly; later ones by their norm."""
    plain, stock = spied(patcher or model.patcher)
    tiny_models.sample(plain, model, steps=1)
    clone, ours = spied(patcher or model.patcher)
    tiny_models.sample(attach(clone, method), model, steps=1)
    assert [c[:2] for c in stock] == [c[:2] for c in ours]
    return [(a[0], a[1], float(b[2].double().norm() / a[2].double().norm())) for a, b in zip(stock, ours, strict=True)]


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "wan", "flux", "sd3", "qwen_image", "lumina2", "z_image", "svd", "hunyuan_video", "ltx"])
def test_the_trained_size_is_bit_identical(host, name):
    assert name in tiny_models.NAMES
    model = tiny_models.tiny(name)
    patched = attach(model.patcher, EntropyScale(trained=(model.facts.grid,)))
    assert torch.equal(tiny_models.sample(model.patcher, model), tiny_models.sample(patched, model))
    assert record_of(patched).last.touched == {OWNER: 0}


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "wan", "flux", "sd3", "qwen_image", "lumina2", "z_image", "svd", "hunyuan_video", "ltx"])
def test_other_sizes_change_self_and_joint_attention_only(host, name):
    model = tiny_models.tiny(name)
    t, y, x = model.facts.grid
    patched = attach(model.patcher, EntropyScale(trained=((2 * t if t > 1 else 1, 2 * y, 2 * x),)))
    ours = tiny_models.sample(patched, model)
    run = record_of(patched).last
    assert torch.isfinite(ours).all() and not torch.equal(ours, tiny_models.sample(model.patcher, model))
    assert {e.kind for e in run.entries if e.planned} <= {"self", "joint"}
    assert {e.backend for e in run.entries if e.planned} == {"host"}


@pytest.mark.host
def test_each_unet_level_has_its_own_counts(host):
    """Odd sizes: latent 7x6 and 4x3 below it, trained at 13x9 and 7x5 below it."""
    model = tiny_models.tiny("sd15", latent=(1, 4, 7, 6))
    found = factors(model, EntropyScale(trained=((1, 13, 9),), blocks=tiny_selection("d1")))
    first = next(f for nq, nk, f in found if nq == nk == 42)
    assert first == pytest.approx(factor(42, 117), rel=1e-5)
    found = factors(model, EntropyScale(trained=((1, 13, 9),), blocks=tiny_selection("d3")))
    below = next(f for nq, nk, f in found if nq == nk == 12)
    assert below == pytest.approx(factor(12, 35), rel=1e-5)
    assert all(f == pytest.approx(1.0, abs=1e-6) for nq, nk, f in found[:2]), "nothing before the chosen block"


def tiny_selection(text):
    from attention_loom.core.schedule import BlockSelection

    return BlockSelection.parse(text)


@pytest.mark.host
def test_joint_attention_counts_text_and_picture(host):
    model = tiny_models.tiny("flux")
    first = factors(model, EntropyScale(trained=((1, 8, 8),)))[0]
    assert first[:2] == (11, 11)
    assert first[2] == pytest.approx(factor(6 + 5, 64 + 5), rel=1e-5)


@pytest.mark.host
def test_padding_tokens_are_no_keys(host):
    model = tiny_models.tiny("z_image")
    joint = next(f for nq, nk, f in factors(model, EntropyScale(trained=((1, 8, 8),), blocks=tiny_selection("0"))) if nq == 64)
    assert joint == pytest.approx(factor(6 + 5, 64 + 5), rel=1e-5)


@pytest.mark.host
def test_layers_over_time_count_frames(host):
    model = tiny_models.tiny("svd")
    first = next(f for nq, nk, f in factors(model, EntropyScale(trained=((14, 4, 6),))) if nq == nk == 3)
    assert first == pytest.approx(factor(3, 14), rel=1e-4)


@pytest.mark.host
def test_tiles_count_their_own_keys(host):
    """A node that cuts the top level into tiles of a quarter, as HyperTile does."""
    model = tiny_models.tiny("sd15")
    tiled = model.patcher.clone()
    tiled.set_model_attn1_patch(lambda n, c, v, extra: tuple(x.unflatten(1, (4, -1)).flatten(0, 1) if x.shape[1] == 24 else x for x in (n, c, v)))
    tiled.set_model_attn1_output_patch(lambda n, extra: n.unflatten(0, (-1, 4)).flatten(1, 2) if n.shape[1] == 6 and tuple(extra["activations_shape"][2:]) == (4, 6) else n)
    found = factors(model, EntropyScale(trained=((1, 4, 6),), blocks=tiny_selection("d1")), patcher=tiled)
    assert found[0][:2] == (6, 6)
    assert found[0][2] == pytest.approx(factor(6, 24), rel=1e-5)


@pytest.mark.host
def test_apply_and_tolerance(host):
    model = tiny_models.tiny("flux")
    stock = tiny_models.sample(model.patcher, model)
    for idle in ({"apply": "larger"}, {"tolerance": 0.3}):
        assert torch.equal(stock, tiny_models.sample(attach(model.patcher, EntropyScale(trained=((1, 2, 4),), **idle)), model))
    assert not torch.equal(stock, tiny_models.sample(attach(model.patcher, EntropyScale(trained=((1, 2, 4),), apply="smaller")), model))


@pytest.mark.host
def test_measured_mode_gives_every_head_its_own_factor(host):
    model = tiny_models.tiny("wan")
    patched = attach(model.patcher, EntropyScale(trained=((1, 2, 3),), mode="measured"))
    ours = tiny_models.sample(patched, model)
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours, tiny_models.sample(attach(model.patcher, EntropyScale(trained=((1, 2, 3),))), model))


@pytest.mark.host
def test_ultravico_at_the_same_call_is_refused(host):
    model = tiny_models.tiny("wan")
    both = attach(attach(model.patcher, EntropyScale(trained=((2, 2, 3),))), UltraViCo(train_frames=2, alpha=0.5))
    with pytest.raises(ConflictError, match="scales only positive logits"):
        tiny_models.sample(both, model)


@pytest.mark.host
def test_far_beyond_the_trained_size_is_said(host):
    model = tiny_models.tiny("sd15")
    patched = attach(model.patcher, EntropyScale(trained=((1, 2, 3),)))
    tiny_models.sample(patched, model)
    assert "4.0 times the trained number of tokens" in record_of(patched).last.warnings[0]


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.host
def test_trained_sizes_by_table_and_by_hand(host):
    grids = lambda name, *size: trained_grids(tiny_models.tiny(name).patcher, *size)  # noqa: E731
    assert grids("sd15") == (((1, 64, 64),), False)
    assert TABLE["SDXL"] == TABLE["KOALA_700M"] == Trained(((1024, 1024, 1),), many=True)
    assert grids("flux") == (((1, 64, 64),), True)
    assert grids("sd3") == (((1, 64, 64),), False)
    assert grids("qwen_image") == (((1, 83, 83),), True)
    assert grids("svd") == (((14, 72, 128), (25, 72, 128)), False)
    assert grids("flux", 600, 520) == (((1, 33, 38),), False), "padded up to whole patches; a size by hand has no tolerance"
    assert grids("wan", 832, 480, 81) == (((21, 30, 52),), False)
    assert math.prod(grids("wan", 832, 480, 81)[0][0]) == 32760
    assert math.prod(grids("wan", 1280, 720, 81)[0][0]) == 75600
    assert grids("wan_ti2v", 1280, 704, 121) == (((31, 22, 40),), False)
    assert WAN_SIZES[5120].sizes == ((832, 480, 81), (1280, 720, 81))
    assert known(tiny_models.tiny("wan").patcher) is None, "neither 1.3B nor 14B"


@pytest.mark.host
def test_strides_are_the_hosts_own_where_it_tells(host):
    told = 0
    for name in tiny_models.NAMES:
        patcher = tiny_models.tiny(name).patcher
        latent = patcher.model.latent_format
        if hasattr(latent, "temporal_downscale_ratio") and family_of(patcher.model.diffusion_model).video:
            assert frame_stride(patcher) == latent.temporal_downscale_ratio, name
            told += 1
    if not told:
        pytest.skip("this host does not tell how much its latents are smaller")


@pytest.mark.host
@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("wan", (), r"WAN21_T2V is not in the table; set train_width, train_height and train_frames"),
        ("wan", (832, 480), r"is not in the table"),
        ("sd15", (512, 0), "give both, or 0 for both"),
        ("sd15", (-1, 512), "train_width -1 was given"),
        ("sd15", (4, 4), "less than one token"),
    ],
)
def test_trained_sizes_nobody_knows(host, name, size, words):
    with pytest.raises(LoomError, match=words):
        trained_grids(tiny_models.tiny(name).patcher, *size)


@pytest.mark.host
def test_the_node_reads_its_inputs(host):
    from attention_loom.nodes.entropy_scale import configure

    flux, sd15 = tiny_models.tiny("flux").patcher, tiny_models.tiny("sd15").patcher
    assert configure(flux).tolerance == 0.15
    assert configure(flux, train_width=1024, train_height=1024).tolerance == 0.0
    assert configure(sd15).trained == ((1, 64, 64),)
    assert configure(sd15, 0.0).off
    for wrong, words in (({"apply": "never"}, "apply 'never' was given"), ({"mode": "guessed"}, "mode 'guessed' was given")):
        with pytest.raises(LoomError, match=words):
            configure(sd15, **wrong)
