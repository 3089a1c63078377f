"""AttenCraft's training, step by step: what a step's losses, gradients and masks are, against arithmetic written out."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from attencraft_world import MASKED, SCALE, opened, ran
from attention_loom.core.attencraft import masks, trainer
from attention_loom.core.differentiable import gradients

pytestmark = pytest.mark.host
STILL = dict(learning_rate=0.0, sampling="all")


@pytest.fixture
def world(tmp_path, monkeypatch):
    yield from opened(tmp_path, monkeypatch)


class Watched:
    """A training's model calls: of each the picture, the text, the error, and the queries and keys of cross-attention on places as many as masks have."""

    def __init__(self, training):
        self.training, self.errors, self.seen, self.orders = training, [], [], []
        self.error, self.write = training._error, training.prompts.write
        training._error, training.prompts.write = self._error, self._write

    def _write(self, order):
        self.orders.append((tuple(order), self.write(order)))
        return self.orders[-1][1]

    def _error(self, model, options, latent, text):
        found = []
        layers = [m for name, m in model.diffusion_model.named_modules() if name.endswith("attn2")]
        hooks = [getattr(m, part).register_forward_hook(lambda module, given, out: found.append(out.detach().clone())) for m in layers for part in ("to_q", "to_k")]
        try:
            error = self.error(model, options, latent, text)
        finally:
            for hook in hooks:
                hook.remove()
        self.errors.append((latent.clone(), text[0][0].detach().clone(), error.detach().clone()))
        self.seen.append([(q, k) for q, k in zip(found[::2], found[1::2], strict=True) if q.shape[1] == MASKED[0] * MASKED[1]])
        return error


def one_step(world, **settings):
    """A finished step that moved nothing, and its gradients, not clipped."""
    training = world.training(steps=1, **STILL | settings)
    training.plan = dataclasses.replace(training.plan, clip=1e9)
    ran(training)
    return training, slopes(training)


def slopes(training):
    parameters = [p for group in training.optimiser.param_groups for p in group["params"]]
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])


# --- losses ----------------------------------------------------------------------------------------------------------


def test_each_step_is_scored_inside_the_masks_of_what_it_shows(world):
    """The masked loss by hand, cell by cell of the painted masks; the picture and its scaling are the host's."""
    training = world.training(steps=6, learning_rate=0.0, prior_weight=0.0, attention_weight=0.0)
    watched = Watched(training)
    ran(training)
    assert {order for order, _ in watched.orders[-6:]} >= {(0,), (1,)}
    for (order, _), (latent, _, error), loss in zip(watched.orders[-6:], watched.errors, training.history["loss"], strict=True):
        shown = world.painted[list(order)].amax(0)
        assert loss == pytest.approx(float((error[0].square().sum(0) * shown).sum()) / shown.numel(), rel=1e-5)
        assert torch.allclose(latent, SCALE * world.latent["samples"])


def test_pictures_of_before_come_with_their_own_prompts(world):
    texts = [world.text(words)[0] for words in ("a forest", "the sea", "a town at night")]
    training = world.training(steps=6, learning_rate=0.0, attention_weight=0.0, prior_positive=texts)
    watched = Watched(training)
    ran(training)
    seen = set()
    for (latent, text, error), loss in zip(watched.errors[1::2], training.history["prior"], strict=True):
        (which,) = (i for i in range(3) if torch.allclose(latent[0], SCALE * world.prior["samples"][i]))
        assert torch.equal(text, texts[which][0])
        assert loss == pytest.approx(float(error.square().mean()), rel=1e-5)
        seen.add(which)
    assert seen == {0, 1, 2}


def divergence(cross, mask):
    """Of a map [96] from a mask, by the definition."""
    p, q = (((x - x.min()) / (x.max() - x.min())).softmax(0) for x in (cross, mask))
    r = (p + q) / 2
    return float(0.5 * ((p * (p / r).log()).sum() + (q * (q / r).log()).sum()))


@pytest.mark.parametrize("scheme", ["uniform", "all"])
def test_new_words_and_the_start_token_are_held_to_their_masks(world, scheme):
    """The attention loss by hand, from queries and keys of the layers themselves; a new word stands where its vector was put."""
    training = world.training(steps=2, learning_rate=0.0, prior_weight=0.0, sampling=scheme, concepts="mine = red cat\nyours = dog")
    watched = Watched(training)
    ran(training)
    assert {len(order) for order, _ in watched.orders[-2:]} == {1 if scheme == "uniform" else 2}
    background = 1 - world.painted.sum(0)
    for (order, written), seen, loss in zip(watched.orders[-2:], watched.seen, training.history["attention"], strict=True):
        assert len(seen) >= 2
        q, k = ([x[0].unflatten(-1, (4, -1)).transpose(0, 1).double() for x in part] for part in zip(*seen, strict=True))
        maps = torch.stack([(a @ b.mT * a.shape[-1] ** -0.5).softmax(-1).mean(0) for a, b in zip(q, k, strict=True)]).mean(0)
        tokens = [entry[0] for entry in written.tokens["l"][0]]
        wanted = [divergence(maps[:, 0], background.flatten().double())]
        for c in order:
            (place,) = (i for i, token in enumerate(tokens) if token is training.prompts.vectors["l"][c])
            wanted.append(divergence(maps[:, place], world.painted[c].flatten().double()))
        assert loss == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)


def test_losses_move_with_their_weights(world):
    """Gradients are sums of those of the three losses, each times its weight; so is the loss that is told."""
    (_, nothing), (_, prior), (_, attention), (training, both) = (one_step(world, prior_weight=p, attention_weight=a)[0:2] for p, a in ((0, 0), (1, 0), (0, 100), (2, 300)))
    moved = [float((x - nothing).abs().max()) for x in (prior, attention)]
    assert min(moved) > 1e-3 * float(nothing.abs().max())
    assert torch.allclose(both, nothing + 2 * (prior - nothing) + 3 * (attention - nothing), atol=1e-4 * float(both.abs().max()))
    told = {part: values[0] for part, values in training.history.items()}
    assert told["loss"] == pytest.approx(told["masked"] + 2 * told["prior"] + 300 * told["attention"])


# --- the start token -------------------------------------------------------------------------------------------------


def constant(world, rows):
    """Keys and values of the text with some rows as constants of the gradient, by hooks on the layers themselves. Returns their handles."""

    def held(module, given, out):
        keep = torch.zeros(out.shape[1], 1)
        keep[rows] = 1
        return out * (1 - keep) + out.detach() * keep

    layers = [m for name, m in world.model.model.diffusion_model.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    return [layer.register_forward_hook(held) for layer in layers]


def test_the_start_token_is_a_constant_of_every_gradient(world, monkeypatch):
    """In the prediction and in the maps of the attention loss, against layers whose first row is a constant; with all other rows constants nothing is left."""
    mine = one_step(world, attention_weight=1000.0)[1]
    hooks = constant(world, slice(1, None))
    try:
        alone = one_step(world, attention_weight=1000.0)[1]
    finally:
        for hook in hooks:
            hook.remove()
    for place in ("attencraft.trainer", "methods.attencraft"):
        monkeypatch.setattr(f"attention_loom.core.{place}.start_held", lambda x, axis: x)
    free = one_step(world, attention_weight=1000.0)[1]
    hooks = constant(world, slice(0, 1))
    try:
        wanted = one_step(world, attention_weight=1000.0)[1]
    finally:
        for hook in hooks:
            hook.remove()
    size = float(wanted.abs().max())
    assert (mine - wanted).abs().max() < 1e-5 * size < 1e-3 * (free - wanted).abs().max()
    assert not alone.any()


# --- what a step shows, and how it moves ------------------------------------------------------------------------------


def test_steps_are_drawn_by_the_scheme_with_the_scores_of_the_masks(world, monkeypatch):
    chances, draw = [], trainer.draw
    monkeypatch.setattr(trainer, "draw", lambda given, generator: chances.append(given) or draw(given, generator))
    for scheme in ("uniform", "reweighted", "all"):
        training = ran(world.training(steps=1, sampling=scheme))
    uniform, reweighted, together = chances
    assert uniform == pytest.approx({(0,): 1 / 3, (1,): 1 / 3, (0, 1): 1 / 3}) and together == {(0, 1): 1.0}
    first, second = training.scores
    assert first != second and min(first, second) > 0
    assert reweighted[(0,)] / reweighted[(1,)] == pytest.approx(second / first, rel=1e-6) and reweighted[(0, 1)] == pytest.approx(1 / 3)


def test_the_optimiser_is_adamw_on_what_is_learned_with_clipped_gradients(world):
    """The first step by its formula: against the sign of the gradient, and towards zero by the decay."""
    training = world.training(steps=1, learning_rate=1e-2, weight_decay=0.5)
    training.plan = dataclasses.replace(training.plan, clip=1e-3)
    words = [p.detach().clone() for p in training.prompts.parameters()]
    ran(training)
    assert float(slopes(training).norm()) == pytest.approx(1e-3, rel=1e-3)
    moved = [(torch.zeros_like(p), p) for a in training.adapters.values() for p in a.parameters()] + list(zip(words, training.prompts.parameters(), strict=True))
    for first, now in moved:
        if now.grad is not None:
            assert torch.allclose(now, first * (1 - 1e-2 * 0.5) - 1e-2 * now.grad / (now.grad.abs() + 1e-8), atol=1e-6)
    assert sum(now.grad is not None for _, now in moved) >= 2 * 7 + 1


def test_sparing_memory_changes_no_more_than_rounding(world, monkeypatch):
    """What comes back from system memory may lie otherwise, and sums are then made in another order."""
    outside = []
    monkeypatch.setattr(trainer, "gradients", lambda model=None, in_place=True: outside.append(model) or gradients(model, in_place))
    plain, one = one_step(world)
    assert outside and not any(outside)
    spared, other = one_step(world, spare_memory=True)
    assert plain.history == spared.history and (one - other).abs().max() < 1e-5 * one.abs().max()
    assert [model is world.model.model for model in outside if model is not None] == [True], "the model of the training"


# --- masks anew ------------------------------------------------------------------------------------------------------


def found_always(monkeypatch, new, matrix=None, scores=(0.4, 0.2)):
    """Every look finds these masks."""

    def make(words, members, places, rule, names, joint, sigma=0.0):
        return masks.Found((*names, "background"), torch.zeros(3, *MASKED), 0.1 + 0.9 * new.float(), new, torch.eye(3) if matrix is None else matrix, scores)

    monkeypatch.setattr(masks, "make", make)


def test_new_masks_that_make_no_sense_are_not_taken(world, monkeypatch):
    old = masks.given(world.painted, MASKED, ["a", "b"])
    empty, ground = old.clone(), old.clone()
    empty[1], ground[2] = False, False
    for new, matrix, taken in ((old, torch.ones(3, 3), False), (empty, None, False), (ground, None, True)):
        found_always(monkeypatch, new, matrix)
        training = ran(world.training(steps=3, refresh_every=2, ssim=0.0 if new is empty else 0.8))
        assert training.refreshed == [(3, taken)] and torch.equal(training.masks, new if taken else old)
    assert not training.masks[2].any(), "the background is replaced with the others and not compared"


def test_masks_and_scores_are_gone_on_with(world, monkeypatch):
    """A training broken off behind a refresh draws and scores by what the refresh found."""
    new = masks.given(world.painted, MASKED, ["a", "b"])
    new[0, 0, 0] = False
    found_always(monkeypatch, new)
    settings = dict(refresh_every=2, sampling="reweighted")
    whole = ran(world.training(steps=5, name="whole", **settings))
    assert whole.refreshed == [(3, True), (5, True)]
    ran(world.training(steps=3, **settings))
    rest = world.training(steps=5, resume=True, **settings)
    assert torch.equal(rest.masks, new) and rest.scores == (0.4, 0.2)
    ran(rest)
    assert rest.history == whole.history and all(torch.equal(v, whole.lora()[k]) for k, v in rest.lora().items())


# --- new words -------------------------------------------------------------------------------------------------------


def test_a_new_word_stands_before_its_words_and_begins_with_their_meaning(world):
    training = world.training(concepts="mine = red cat\nyours = dog", template="look: {}, painted", joiner=" beside ")
    table = world.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight

    def ids(words):
        return [entry[0] for entry in world.clip.tokenize(words)["l"][0]][1 : 1 + len(words.split())]

    vectors = training.prompts.vectors["l"]
    assert torch.allclose(vectors[0], table[ids("red cat")].float().mean(0)) and torch.allclose(vectors[1], table[ids("dog")[0]].float())
    written = training.prompts.write((1, 0))
    tokens = [entry[0] for entry in written.tokens["l"][0]]
    for c, words in ((0, "red cat"), (1, "dog")):
        first, *others = written.phrases[c]
        assert tokens[first] is vectors[c] and [tokens[i] for i in others] == ids(words) and written.identifiers[c] == first
    plain = [entry[0] for entry in world.clip.tokenize("look: dog beside red cat, painted")["l"][0]]
    assert [t for t in tokens if isinstance(t, int)] == plain[: len(tokens) - 2] and len(tokens) == 77


# --- precision -------------------------------------------------------------------------------------------------------


def test_in_half_precision_what_is_learned_stays_whole(world):
    before, slopes_ = world.predict(), []
    for precision in ("fp32", "bf16"):
        training, slope = one_step(world, precision=precision)
        slopes_.append(slope)
        assert all(p.dtype == torch.float32 for group in training.optimiser.param_groups for p in group["params"])
    assert F.cosine_similarity(*slopes_, dim=0) > 0.99 and not torch.equal(*slopes_)
    assert torch.equal(world.predict(), before), "the model given computes as before"
