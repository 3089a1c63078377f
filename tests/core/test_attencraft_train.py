"""Learning concepts, whole: what is trained and what is not, the model as before whatever ends a training, going on from a checkpoint, and the
files through the host's own loaders."""

import json

import pytest
import tiny_text
import torch
from attencraft_world import CONCEPTS, functions, opened, ran
from attention_loom.core.attencraft import adapters, masks, progress
from attention_loom.core.attencraft.trainer import Training
from attention_loom.core.errors import LoomError
from tiny_models import tiny

pytestmark = pytest.mark.host


@pytest.fixture
def world(tmp_path, monkeypatch):
    yield from opened(tmp_path, monkeypatch)


# --- what is trained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_only_keys_and_values_of_the_text_and_the_new_words_are_trained(world, kind):
    before = {k: v.clone() for k, v in world.model.model.state_dict().items()}
    text_before = {k: v.clone() for k, v in world.clip.cond_stage_model.state_dict().items()}
    training = world.training(adapter=kind, rank=2, sampling="all")
    first = [p.detach().clone() for p in training.prompts.parameters()]
    ran(training)
    lora = training.lora()
    assert lora and all(".attn2.to_k." in k or ".attn2.to_v." in k for k in lora) and all(k.startswith("diffusion_model.") for k in lora)
    ends = {k.rpartition("to_")[2][2:] for k in lora}
    assert ends == ({"diff"} if kind == "full" else {"lora_up.weight", "lora_down.weight", "alpha"})
    assert all(float(v) == 2 for k, v in lora.items() if k.endswith("alpha")), "the rank: an addition is up times down"
    moved = [k for k, v in lora.items() if k.endswith(("diff", "lora_down.weight")) and v.any()]
    assert len(moved) == 2 * 7, "every one of the seven cross-attentions learns"
    assert all(not torch.equal(a, b) for a, b in zip(first, training.prompts.parameters(), strict=True)), "and every new word"
    assert all(torch.equal(v, before[k]) for k, v in world.model.model.state_dict().items()), "the model itself does not"
    assert all(torch.equal(v, text_before[k]) for k, v in world.clip.cond_stage_model.state_dict().items())


def test_what_is_switched_off_is_not_trained(world):
    keys = ran(world.training(train_values=False, new_words=False))
    assert all("to_k" in k for k in keys.lora()) and keys.prompts.parameters() == []
    words = ran(world.training(train_keys=False, train_values=False))
    assert words.lora() == {} and len(words.prompts.parameters()) == 2


def test_without_a_rate_nothing_moves(world):
    training = world.training(learning_rate=0.0)
    first = [p.detach().clone() for p in training.prompts.parameters()]
    ran(training)
    assert not any(v.any() for v in training.lora().values())
    assert all(torch.equal(a, b) for a, b in zip(first, training.prompts.parameters(), strict=True))


def test_additions_that_are_new_change_nothing(world):
    import comfy.ops

    before = world.predict()
    diffusion = world.model.model.diffusion_model
    for kind in ("full", "lora"):
        with torch.inference_mode(False):
            made = adapters.made(diffusion, kind, 4, True, True, torch.device("cpu"), 0)
        with adapters.worn(diffusion, made):
            assert torch.equal(world.predict(), before)
    with torch.no_grad():
        next(iter(made.values())).lora_down.weight.add_(1.0)
    with adapters.worn(diffusion, made):
        assert not torch.equal(world.predict(), before)
    assert torch.equal(world.predict(), before) and functions(world) == []
    fresh = torch.nn.ModuleDict({"a": comfy.ops.disable_weight_init.Linear(4, 4)})
    with adapters.worn(fresh, {"a": torch.nn.Identity()}):
        assert len(fresh["a"].weight_function) == 1
    assert "weight_function" not in vars(fresh["a"]), "where the list was its class's, it is again"


def test_the_start_token_is_held_in_the_model(world, monkeypatch):
    """Gradients with the rule differ from those without it, and the losses of the first step do not."""
    held = ran(world.training(steps=1, sampling="all"))
    monkeypatch.setattr("attention_loom.core.attencraft.trainer.starts_held", lambda attention: attention)
    monkeypatch.setattr("attention_loom.core.methods.attencraft.start_held", lambda x, axis: x)
    free = ran(world.training(steps=1, sampling="all"))
    assert held.history == free.history
    assert any(not torch.equal(a, b) for a, b in zip(held.lora().values(), free.lora().values(), strict=True))


def test_a_whole_mask_and_nothing_else_is_the_plain_error(world):
    """Four times the mean square of the noise's error, as an evaluation of the model by hand gives it."""
    training = world.training(concepts="mine = cat", masks=torch.ones(1, 8, 12), prior_weight=0.0, attention_weight=0.0, steps=1, learning_rate=0.0)
    errors = []
    original = Training._error
    training._error = lambda *a: errors.append(original(training, *a)) or errors[-1]
    ran(training)
    assert training.history["loss"][0] == pytest.approx(4 * float(errors[0].detach().square().mean()), rel=1e-5)
    assert training.history["prior"] == [0.0] and training.history["attention"] == [0.0]
    g = torch.Generator().manual_seed(training.plan.seed)
    torch.multinomial(torch.ones(1, dtype=torch.float64), 1, generator=g), torch.randperm(1, generator=g)
    t, noise = int(torch.randint(0, 1000, (1,), generator=g)), torch.randn(tiny_text.LATENT, generator=g)
    sampling = world.model.get_model_object("model_sampling")
    sigma = sampling.sigma(torch.tensor(float(t)))
    clean = world.model.model.process_latent_in(world.latent["samples"])
    with torch.no_grad():
        text = training.prompts.encode(training.prompts.write((0,)))[0][0]
        predicted = world.model.model.apply_model(clean + sigma * noise, sigma[None], c_crossattn=text)
    assert torch.allclose(errors[0], ((clean + sigma * noise) - predicted) / sigma - noise, atol=2e-3) or torch.allclose(
        errors[0], noise - ((clean + sigma * noise) - predicted) / sigma, atol=2e-3
    )


def test_new_words_get_the_gradient_of_the_loss(world):
    """Against a difference along it: the whole way through model and text encoder."""
    import dataclasses

    def loss(move=None):
        training = world.training(steps=1, sampling="all", prior_weight=0.0, learning_rate=0.0, attention_weight=1.0)
        training.plan = dataclasses.replace(training.plan, clip=1e9)
        if move is not None:
            with torch.inference_mode(False), torch.no_grad():
                for p, d in zip(training.prompts.parameters(), move, strict=True):
                    p.add_(d)
        ran(training)
        return training.history["loss"][0], [p.grad.clone() for p in training.prompts.parameters()]

    _, slope = loss()
    norm = sum(float(g.square().sum()) for g in slope) ** 0.5
    step = 0.02
    ahead, behind = (loss([sign * step * g / norm for g in slope])[0] for sign in (1, -1))
    assert all(g.abs().max() > 0 for g in slope) and (ahead - behind) / (2 * step) == pytest.approx(norm, rel=0.02)


def test_the_attention_loss_pulls_words_to_their_masks(world):
    """With a strong one on the words alone, the divergence falls, with the same noise each time."""
    training = world.training(steps=25, attention_weight=100.0, prior_weight=0.0, sampling="all", learning_rate=2e-2)
    original = Training._error

    def same_noise(model, options, latent, conditioning):
        training.generator.manual_seed(3)
        return original(training, model, options, latent, conditioning)

    training._error = same_noise
    ran(training)
    attention = training.history["attention"]
    assert sum(attention[-5:]) / 5 < 0.8 * attention[0], attention


# --- masks -----------------------------------------------------------------------------------------------------------


def test_masks_are_looked_for_anew_and_taken_if_they_are_alike(world, monkeypatch):
    seen = []
    original = masks.make

    def finding(words, members, places, rule, names, joint, sigma=0.0):
        found = original(words, members, places, rule, names, joint, sigma)
        seen.append((len(members), places.grid))
        new = world.training_masks.clone()
        if len(seen) > 2:
            new[0] = ~new[0]
        soft = 0.1 + 0.9 * new.float()
        return masks.Found((*names, "background"), found.cross, soft, new, torch.eye(3), (0.4, 0.2))

    monkeypatch.setattr(masks, "make", finding)
    world.training_masks = masks.given(world.painted, (8, 12), ["a", "b"])
    world.training_masks[0, 0, 0] = False
    training = ran(world.training(steps=5, refresh_every=2))
    assert training.refreshed == [(3, True), (5, False)] and training.scores == (0.4, 0.2)
    assert torch.equal(training.masks, world.training_masks) and seen == [(2, (8, 12))] * 3


def test_first_masks_come_from_attention_or_are_refused(world, monkeypatch):
    with pytest.raises(LoomError, match=r"covers|do not tell the concepts apart"):
        world.training(masks=None, threshold=0.5).run()
    monkeypatch.setattr(masks.Found, "insist", lambda self: None)
    training = ran(world.training(masks=None, threshold=0.0, steps=1))
    assert training.masks.shape == (3, 8, 12) and training.masks.sum(0).max() == 1
    assert len(training.scores) == 2 and min(training.scores) > 0, "what reweighted sampling goes by"


# --- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "exception", "interrupt"])
def test_the_model_is_as_before_whatever_ends_it(world, how):
    import comfy.model_management as memory

    before, text = world.predict(cfg=3.0), world.text("a dog")[0][0]

    def error(model, *rest):
        if how == "exception" and training.done == 2:
            raise RuntimeError("out of paper")
        return Training._error(training, model, *rest)

    training = world.training()
    training._error = error
    own, thawed = [*world.model.model.parameters(), *world.clip.cond_stage_model.parameters()], []

    def show(t):
        thawed.append(not any(p.is_inference() for m in (world.model.model, world.clip.cond_stage_model) for p in m.parameters()))
        if how == "interrupt" and t.done == 2:
            memory.interrupt_current_processing(True)

    training.show = show
    if how == "end":
        training.run()
    else:
        with pytest.raises(RuntimeError if how == "exception" else memory.InterruptProcessingException):
            training.run()
        memory.interrupt_current_processing(False)
    assert functions(world) == [] and training.capture.words is None
    assert torch.equal(world.predict(cfg=3.0), before) and torch.equal(world.text("a dog")[0][0], text)
    assert all(thawed) and any(p.is_inference() for p in own[-5:]), "nothing that autograd refuses meanwhile"
    assert all(p is q and p.grad is None for p, q in zip(own, [*world.model.model.parameters(), *world.clip.cond_stage_model.parameters()], strict=True))
    again = world.training(resume=True)
    assert again.done == (3 if how == "end" else 2), "what was done is kept"


def test_a_broken_off_training_goes_on_as_if_it_had_not_been(world):
    whole = ran(world.training(steps=4, refresh_every=2, name="whole"))
    ran(world.training(steps=2, refresh_every=2))
    rest = world.training(steps=4, refresh_every=2, resume=True)
    assert rest.done == 2
    ran(rest)
    assert rest.history == whole.history and rest.refreshed == whole.refreshed
    assert all(torch.equal(v, whole.lora()[k]) for k, v in rest.lora().items())
    assert all(torch.equal(a, b) for a, b in zip(rest.prompts.parameters(), whole.prompts.parameters(), strict=True))


def test_a_checkpoint_of_another_training_is_refused(world):
    ran(world.training(steps=1))
    for other in ({"learning_rate": 1e-3}, {"concepts": "mine = cat\nyours = owl"}, {"template": "a picture of {}"}, {"latent": {"samples": world.latent["samples"] + 1}}):
        with pytest.raises(LoomError, match="trained on other pictures"):
            world.training(resume=True, **other)
    assert world.training(resume=True, steps=9, preview_every=5).done == 1, "a longer training is the same one"
    assert world.training(steps=9).done == 0
    path = world.folder / "output" / "attention_loom" / "attencraft" / "two" / "training.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(LoomError, match="cannot be read"):
        world.training(resume=True)


def test_a_loss_that_is_no_number_ends_it_with_the_last_good_state(world):
    training = world.training(steps=4)
    original = training.prompts.encode
    training.prompts.encode = lambda written: [[x * float("nan") if training.done == 2 else x, facts] for x, facts in original(written)]
    with pytest.raises(LoomError, match="the loss is nan at step 3"):
        training.run()
    again = world.training(resume=True, steps=4)
    assert again.done == 2 and all(v.isfinite().all() for v in again.lora().values())


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_hosts_loaders_read_what_was_learned(world, kind):
    import comfy.sd
    from attention_loom.nodes.attencraft import LoomAttenCraftTrain

    with torch.inference_mode():
        out = LoomAttenCraftTrain.execute(
            world.model, world.clip, world.latent, CONCEPTS, "two", masks=world.painted, prior_weight=0.0, steps=3, learning_rate=1e-2, adapter=kind, refresh_every=0,
            preview_every=2, preview_steps=2,
        ).result  # fmt: skip
    trained, lora, losses, words, found, page, sketches = out
    assert len(losses["loss"]) == 3 and torch.equal(found, masks.at_size(found, (64, 96))) and found.shape == (2, 64, 96)
    assert page.shape[-1] == 3 and sketches.shape[0] == 3
    prompt = words
    assert prompt == "a photo of embedding:two_mine cat and embedding:two_yours dog"
    again = world.training(masks=world.painted, prior_weight=0.0, adapter=kind, resume=True, preview_every=2)
    assert again.done == 3
    # the prompt, through the host's own syntax
    learned = again.prompts.encode(again.prompts.write((0, 1)))
    hosts = world.text(prompt)
    assert torch.equal(hosts[0][0], learned[0][0]) and torch.equal(hosts[0][1]["pooled_output"], learned[0][1]["pooled_output"])
    assert not torch.equal(hosts[0][0], world.text("a photo of cat and dog")[0][0])
    # the weights, through the host's own loader
    stock = world.predict(words=hosts)
    with adapters.worn(world.model.model.diffusion_model, again.adapters):
        worn = world.predict(words=hosts)
    loaded, _ = comfy.sd.load_lora_for_models(world.model, None, dict(lora), 1.0, 0.0)
    for model in (loaded, trained):
        assert torch.equal(world.predict(model, words=hosts), worn)
    assert (worn - stock).abs().max() > 1e-5
    nothing, _ = comfy.sd.load_lora_for_models(world.model, None, dict(lora), 0.0, 0.0)
    assert torch.equal(world.predict(nothing, words=hosts), stock)


def test_names_of_others_embeddings_are_not_taken(world):
    folder = world.folder / "embeddings"
    folder.mkdir()
    (folder / "two_mine.pt").write_bytes(b"")
    with pytest.raises(LoomError, match="there is an embedding 'two_mine' already"):
        world.training()
    (folder / "two_mine.pt").unlink()
    (folder / "two_mine.safetensors").write_bytes(b"somebody's")
    with pytest.raises(LoomError, match="there is an embedding 'two_mine' already"):
        world.training()


def test_the_picture_of_a_training(world):
    training = ran(world.training(preview_every=1, steps=2, preview_steps=1, preview_cfg=1.0))
    page = progress.draw(training)
    assert page.size[0] == 1100 and len(training.sketches) == 6
    assert [name for _, name, _ in training.sketches[:3]] == ["mine", "yours", "mine + yours"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip": None}, "no text encoder"),
        ({"name": "../two"}, "'../two' is not a name"),
        ({"prior_latents": None}, "prior_weight 1 needs pictures of the base model"),
        ({"prior_latents": {"samples": torch.ones(1, 16, 8, 12)}}, "16 channels and the picture 4"),
        ({"template": "a photo"}, "must hold {} once"),
        ({"template": "a very good photo of {}" + ", detailed" * 60}, "tokens and 75 fit"),
        ({"latent": {"samples": torch.ones(2, 4, 8, 12)}}, "holds 2 pictures"),
        ({"masks": torch.ones(2, 8, 12)}, "overlap"),
        ({"latent": {"samples": torch.ones(1, 4, 4, 6)}, "masks": torch.ones(1, 4, 6), "concepts": "a = cat", "refresh_every": 20}, "set refresh_every to 0"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"adapter": "dora"}, "adapter 'dora'"),
    ],
)
def test_bad_input_gets_one_sentence(world, settings, words):
    with pytest.raises(LoomError, match=words.replace("{}", r"\{\}")):
        world.training(**settings).run()


def test_several_prior_prompts_fit_the_pictures(world):
    two = world.text() * 2
    with pytest.raises(LoomError, match="3 prior pictures and 2 prior prompts"):
        world.training(prior_positive=two)
    assert len(world.training(prior_positive=world.text() * 3).lesson.texts) == 3


def test_models_without_cross_attention_and_packed_weights_are_refused(world):
    flux = tiny("sd3")
    with pytest.raises(LoomError, match="no cross-attention to train"):
        world.training(model=flux.patcher, latent={"samples": torch.ones(flux.latent.shape)}, prior_weight=0.0, prior_latents=None)
    packed = torch.nn.ModuleDict({"attn2": torch.nn.ModuleDict({"to_k": torch.nn.Linear(4, 4)})})
    holder = torch.nn.ModuleDict({"block": packed})
    holder.block.attn2.to_k.weight = torch.nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(LoomError, match="float8_e4m3fn"):
        adapters.made(holder, "full", 1, True, False, torch.device("cpu"), 0)
    assert list(adapters.made(holder, "lora", 1, True, False, torch.device("cpu"), 0)) == ["block.attn2.to_k"]


def test_losses_are_told_as_the_hosts_plot_reads_them(world):
    history = ran(world.training(steps=2)).history
    assert json.loads(json.dumps(history)) == history and set(history) == {"loss", "masked", "prior", "attention"}
    assert history["loss"] == pytest.approx([m + p + a for m, p, a in zip(history["masked"], history["prior"], history["attention"], strict=True)])
