"""Training of the second world's checkpoints: tokens, text towers, noise levels, one step of every model, resuming, files."""

import random

import pytest
import torch
from attention_loom.toyworld.host import CHECKPOINTS

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", autouse=True)
def _host():
    from attention_loom.toyworld.host import load_host

    load_host()


CAPTIONS = [
    "a red circle on the left and a small striped blue square on the right on a green striped background",
    "a white triangle on a grey background",
]


def test_every_word_of_the_grammar_has_tokens():
    from attention_loom.toyworld.scenes.grammar import WORDS
    from attention_loom.toyworld.training import words

    rows = words.rows_tensor(CAPTIONS, "t5")
    assert rows.shape == (2, 36) and rows[1].tolist()[:8] == [words.ROWS.index(word) for word in CAPTIONS[1].split()] + [0]
    assert (rows[1, 8:] == len(words.ROWS)).all()
    clip = words.rows_tensor([" ".join(WORDS[:40]), *CAPTIONS], "clip")
    assert clip.shape == (3, 77) and (clip[:, 0] == 0).all() and clip.max() < len(words.clip_vocabulary())
    for kind in ("t5", "clip"):
        with pytest.raises(ValueError, match="no word 'elephant'"):
            words.rows_tensor(["elephant"], kind)
    with pytest.raises(ValueError, match="has 40 words; the toy text encoder takes at most 35"):
        words.t5_rows(" ".join(WORDS[:40]))


def test_clip_rows_are_the_hosts_own_tokens():
    import comfy.sd1_clip
    from attention_loom.toyworld.training import words

    tokenizer = comfy.sd1_clip.SDTokenizer()
    for caption in (*CAPTIONS, ""):
        host = [token for token, _ in tokenizer.tokenize_with_weights(caption)[0]]
        assert [words.clip_vocabulary()[row] for row in words.clip_rows(caption)] == host


def test_place_words_and_boxes_are_found():
    import comfy.sd1_clip
    from attention_loom.toyworld.training.pointing import cells_inside, place_tokens

    tokens = [token for token, _ in comfy.sd1_clip.SDTokenizer().tokenize_with_weights(CAPTIONS[0])[0]]
    named = {token: word for word in ("left", "right") for token, _ in comfy.sd1_clip.SDTokenizer().tokenize_with_weights(word)[0][1:2]}
    assert [named[tokens[at]] for at in place_tokens(CAPTIONS[0])] == ["left", "right"]
    assert place_tokens(CAPTIONS[1]) == []
    inside = cells_inside(torch.tensor([0.3, -0.2, 0.5, 0.25]), 4, 4).reshape(4, 4)
    assert inside.nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("behind", [0, 3])
def test_attention_that_points_is_learned(behind):
    """Against an explicit softmax; and descent moves a key's attention into its box."""
    import comfy.ops
    from attention_loom.toyworld.training.pointing import Pointing, cells_inside
    from comfy.ldm.modules.attention import CrossAttention

    torch.manual_seed(0)
    layer = CrossAttention(8, 8, heads=2, dim_head=4, operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="cpu")
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x, text = torch.randn(2, 16 + behind, 8), torch.randn(2, 16 + behind if behind else 5, 8)
    text = x if behind else text
    box = torch.tensor([0.0, 0.0, 0.5, 0.5])
    targets = [(1, 2, box)]
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    shares = []
    for _ in range(60):
        with Pointing([layer]) as seen:
            layer(x, context=text)
        loss = seen.loss(targets, (8, 8), behind)
        q, k = (p.unflatten(-1, (2, 4)).transpose(1, 2)[1] for p in (layer.to_q(x), layer.to_k(text)))
        map_ = (q[:, :16] @ k.mT / 2).softmax(-1)[..., 2 + (16 if behind else 0)]
        share = (map_ * cells_inside(box, 4, 4)).sum(-1) / map_.sum(-1)
        assert loss.item() == pytest.approx(-share.log().mean().item(), rel=1e-4, abs=1e-6)
        shares.append(share.mean().item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert shares[0] < 0.5 and shares[-1] > 0.8
    assert not layer.to_q._forward_hooks


def test_t5_tower_equals_the_hosts_forward():
    from attention_loom.toyworld.training import text, words

    torch.manual_seed(0)
    tower = text.T5Tower()
    rows = words.rows_tensor(CAPTIONS, "t5")
    keep = rows < len(words.ROWS)
    with torch.no_grad():
        ours = tower(rows)
        host = tower.t5(rows.clamp(max=len(words.ROWS) - 1), keep.long())[0] * keep[..., None]
    assert ours.abs().mean() > 0.1 and (ours - host).abs().max() < 1e-5
    # Attention binds words: the same word in another place of the caption gives another vector.
    assert (ours[0, 0] - ours[0, 7]).abs().max() > 1e-2


def test_clip_tower_equals_the_hosts_forward():
    from attention_loom.toyworld.training import text, words

    torch.manual_seed(0)
    tower = text.ClipTower()
    rows = words.rows_tensor(CAPTIONS, "clip")
    with torch.no_grad():
        ours = tower(rows)
        embeds = tower.clip.embeddings.token_embedding(rows)
        host = tower.clip(input_tokens=rows, embeds=embeds, num_tokens=[1, 1])[0]
    assert ours.abs().mean() > 0.1 and (ours - host).abs().max() < 1e-5
    assert (ours[0, :3] - ours[1, :3]).abs()[:2].max() < 1e-6  # causal: "a" after the start token cannot see what differs later


@pytest.mark.parametrize("kind", ["T5Tower", "ClipTower"])
def test_fresh_text_attention_sees_several_words(kind, monkeypatch):
    from attention_loom.toyworld.training import text, words

    torch.manual_seed(0)
    tower = getattr(text, kind)()
    shares, inner = [], text._attend

    def attend(q, k, v, heads, mask=None, **more):
        a, b = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k)) if q.ndim == 3 else (q, k)
        logits = a[:, :, :20] @ b[:, :, :20].transpose(-1, -2) * a.shape[-1] ** -0.5
        causal = 0 if kind == "T5Tower" else torch.full((20, 20), -1e9).triu(1)
        shares.append(float((logits + causal).softmax(-1)[:, :, 10:].amax(-1).mean()))
        return inner(q, k, v, heads, mask, **more)

    monkeypatch.setattr(text, "_attend", attend)
    with torch.no_grad():
        tower(words.rows_tensor(CAPTIONS[:1], tower.kind))
    assert len(shares) == 2 and max(shares) < 0.5, "a query that sees one key has no gradient towards the others"


def test_muon_trains_no_queries_and_keys_that_lack_a_norm():
    from attention_loom.toyworld.training import text
    from attention_loom.toyworld.training.loop import orthogonal

    matrix = torch.zeros(64, 64)
    assert not any(orthogonal(name, p) for name, p in text.T5Tower().named_parameters() if name.endswith(("Attention.q.weight", "Attention.k.weight")))
    assert not orthogonal("model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight", matrix)
    assert orthogonal("model.input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight", matrix) and orthogonal("model.blocks.0.self_attn.q.weight", matrix)


def test_noise_levels():
    from attention_loom.toyworld.training import loop, wan

    generator = torch.Generator().manual_seed(0)
    sigma = loop.times(4096, 3.0, generator)
    assert sigma.min() > 0 and sigma.max() < 1 and sigma.median() == pytest.approx(0.75, abs=0.01)
    assert abs(float(torch.corrcoef(torch.stack([sigma[:-1], sigma[1:]]))[0, 1])) < 0.05  # strata are shuffled
    free = wan.Forcing.levels(None, 32, 9, generator)
    assert (free[:8].diff(dim=1) >= 0).all() and (free[8:16] == free[8:16, :1]).all()
    assert (free[16:].std(1) > 0.01).all()


def test_picture_latent():
    from attention_loom.toyworld import picture_latent
    from attention_loom.toyworld.scenes import random_scene, render

    picture = render(random_scene(random.Random(1), moving=False), size=128)[0]
    code = picture_latent.encode(picture)
    assert code.shape == (16, 16, 16) and (code[12:] == 0).all() and 0.2 < code[:12].std() < 2
    means = picture.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert (picture_latent.decode(code) - means).abs().max() < 1e-5
    assert (picture_latent.to_normalised(picture_latent.to_stored(code)) - code).abs().max() < 1e-5
    with pytest.raises(ValueError, match="multiple of 8"):
        picture_latent.encode(picture[:100, :100])


def test_a_share_of_the_scenes_is_bare_and_the_others_stay_as_they_are():
    from attention_loom.toyworld.scenes import Mix
    from attention_loom.toyworld.training import pools

    mix = Mix(two=0.2, three=0.0)
    whole, some = (pools.make(12, 5, "t5", True, mix, bare, progress=lambda _: None) for bare in (0.0, 0.4))
    empty = [i for i, caption in enumerate(some.captions) if " on " not in caption]
    assert 1 <= len(empty) < 12
    for i in range(12):
        if i in empty:
            assert whole.captions[i].endswith(f" on {some.captions[i]}") and len(some.boxes[i]) == 0
            still = some.latents[i][:, 1:].float()  # the first latent frame holds one frame, the others four
            assert (still - still[:, :1]).abs().max() < 1e-3, "nothing moves"
        else:
            assert some.captions[i] == whole.captions[i] and torch.equal(some.latents[i], whole.latents[i])


def test_a_share_of_the_captions_does_not_say_the_ground():
    from attention_loom.toyworld.scenes import Mix
    from attention_loom.toyworld.training import pools

    mix = Mix(two=0.4, three=0.0)
    whole, some = (pools.make(12, 5, "t5", False, mix, 0.3, loose, progress=lambda _: None) for loose in (0.0, 0.5))
    loose = [i for i in range(12) if some.captions[i] != whole.captions[i]]
    assert 2 <= len(loose) <= 10
    assert all(some.captions[i] == whole.captions[i].rsplit(" on a ", 1)[0] and len(some.boxes[i]) for i in loose)
    assert torch.equal(some.latents, whole.latents), "the pictures are the same"


def test_objects_count_more_until_the_learning_rate_falls():
    from attention_loom.toyworld.training import pools

    boxes = [torch.tensor([[0.25, 0.5, 0.5, 0.75]]), torch.tensor([[-0.1, 0.0, 0.06, 1.2], [0.5, 0.5, 0.6, 0.6]])]
    pool = pools.Pool(torch.zeros(2, 16, 16, 16), torch.zeros(2, 36), boxes, ["", ""])
    weights = pools.emphasis(pool, torch.tensor([0, 1]), 0, 10)
    assert weights.shape == (2, 1, 16, 16) and torch.allclose(weights.mean((1, 2, 3)), torch.ones(2))
    heavy = weights[:, 0] > weights[:, 0].amin((1, 2), keepdim=True)
    assert heavy[0].nonzero().aminmax(dim=0).min.tolist() == [8, 4] and heavy[0].nonzero().aminmax(dim=0).max.tolist() == [11, 7] and heavy[0].sum() == 16
    assert heavy[1].sum() == 16 + 4, "a box that leaves the picture is cut; a cell that a box touches counts whole"
    assert float(weights[0].max() / weights[0].min()) == pytest.approx(pools.EMPHASIS)
    assert (pools.emphasis(pool, torch.tensor([0, 1]), 7, 10) == 1).all()


def small(name, monkeypatch, start=CHECKPOINTS):
    """A task of the real model with a tiny batch."""
    from attention_loom.toyworld.training import sd3, sd15, wan
    from attention_loom.toyworld.training.__main__ import build

    monkeypatch.setattr(sd3, "BATCH", 2)
    monkeypatch.setattr(sd15, "BATCH", 2)
    monkeypatch.setattr(wan.Wan, "stages", ((0.2, 1, 4), (1.0, 3, 2)))
    monkeypatch.setattr(wan.Forcing, "stages", ((1.0, 3, 4),))
    return build(name, 3, False, start)


@pytest.mark.parametrize("name", ["wan", "forcing", "sd3", "sd15"])
def test_a_step_lowers_the_loss_of_its_own_batch(name, monkeypatch, tmp_path):
    from attention_loom.toyworld.training.loop import Trainer

    if name == "forcing":
        small("wan", monkeypatch).export(tmp_path, {})
    trainer = Trainer(small(name, monkeypatch, tmp_path if name == "forcing" else CHECKPOINTS), 3)
    assert trainer.matrices and trainer.others and all(p.ndim >= 2 for p in trainer.matrices)
    pool = trainer.task.pool(3, 0)
    start = trainer.generator.get_state()
    losses = []
    for _ in range(3):
        trainer.generator.set_state(start)
        losses.append(trainer.advance(pool, 1000))
    assert losses[2] < losses[0]
    assert all(torch.isfinite(p).all() for p in trainer.live)


def test_resumed_training_equals_an_unbroken_run_and_export_changes_nothing(tmp_path, monkeypatch):
    from attention_loom.toyworld.training.loop import Trainer

    whole = Trainer(small("wan", monkeypatch), 3)
    pool = whole.task.pool(3, 0)
    first = whole.advance(pool, 10)
    torch.save(whole.state(), tmp_path / "resume.pt")
    before = [p.detach().clone() for p in whole.live]
    whole.export(tmp_path, {"seed": 3})
    assert all(torch.equal(a, b) for a, b in zip(before, whole.live, strict=True))
    second = whole.advance(pool, 10)
    other = Trainer(small("wan", monkeypatch), 99)
    other.restore(torch.load(tmp_path / "resume.pt"))
    assert other.step == 1 and first != second and other.advance(pool, 10) == pytest.approx(second, rel=1e-5)


def test_later_runs_start_from_the_files_of_earlier_ones(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    wan = small("wan", monkeypatch)
    first = load_file(CHECKPOINTS / "toy_wan_t2v.safetensors")
    state = wan.model.state_dict()
    assert all(torch.equal(state[name].half(), value) for name, value in first.items() if name != "text_embedding.0.weight")
    wan.export(tmp_path, {})
    forcing = small("forcing", monkeypatch, tmp_path)
    for ours, theirs in zip(wan.state_dict().values(), forcing.state_dict().values(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-3 * ours.abs().max() + 1e-6
    (tmp_path / "scenes_wan_t2v.safetensors").write_bytes((CHECKPOINTS / "toy_wan_vae.safetensors").read_bytes())
    with pytest.raises(ValueError, match="is not a toy Wan model"):
        small("forcing", monkeypatch, tmp_path)


def test_grounding_trains_the_hosts_gligen_and_nothing_else(tmp_path, monkeypatch):
    import comfy.gligen
    import comfy.utils
    from attention_loom.toyworld.training.grounding import Grounding
    from attention_loom.toyworld.training.loop import Trainer

    start = small("sd15", monkeypatch)
    torch.nn.init.normal_(start.model.out[2].weight, std=0.05)  # an untrained U-Net ends in zeros, through which no gradient comes
    start.export(tmp_path, {})
    task = Grounding(0, False, tmp_path)
    frozen = {name: value.clone() for name, value in task.model.state_dict().items()}
    trainer = Trainer(task, 0)
    pool = task.pool(4, 0)
    chosen = torch.arange(4)
    boxes, masks, embeddings = task.grounded(chosen, pool, torch.Generator().manual_seed(1))
    for i in range(4):
        count = len(pool.boxes[i])
        assert torch.equal(boxes[i, :count], pool.boxes[i]) and masks[i].sum() in (0, count) and (embeddings[i, count:] == 0).all() and (embeddings[i, :count] != 0).any()
    for _ in range(2):
        trainer.advance(pool, 10)
    assert all(torch.equal(value, task.model.state_dict()[name]) for name, value in frozen.items())
    assert all(float(block.alpha_attn.detach().abs()) > 0 for block in task.blocks)
    trainer.export(tmp_path, {})
    loaded = comfy.gligen.load_gligen(comfy.utils.load_torch_file(str(tmp_path / "scenes_sd15_gligen.safetensors")))
    assert len(loaded.module_list) == len(task.blocks) and loaded.key_dim == 128
    for ours, theirs in zip(trainer.task.blocks, loaded.module_list, strict=True):
        kept = trainer.average[next(i for i, p in enumerate(trainer.live) if p is ours.linear.weight)]
        assert torch.allclose(kept, theirs.linear.weight.float(), atol=1e-3) and ours.attn.heads == theirs.attn.heads
