"""DiTraj on the host's models and through its nodes: against a gather of the rotary table, whole runs, what does not fit."""

from dataclasses import replace

import host_inprocess
import later_hosts
import pytest
import tiny_models
import torch
from attention_loom.core.attach import attach, methods_of, record_of
from attention_loom.core.call import Block, Span
from attention_loom.core.errors import LoomError
from attention_loom.core.methods.ditraj import DiTraj
from attention_loom.core.methods.riflex import RIFLEx
from attention_loom.core.methods.ultravico import UltraViCo
from attention_loom.core.schedule import BlockSelection
from attention_loom.core.texts import joined, text_of
from attention_loom.core.trajectory import moved, paths
from ditraj_runs import LATENT, OWNER, PATH, VIDEO, WIDTH, call_of, method, text


@pytest.fixture
def host():
    host_inprocess.import_host()
    with torch.inference_mode():
        yield


def big(name):
    return tiny_models.tiny(name)._replace(latent=torch.zeros(LATENT[name]))


def gathered(table, axis, rows, start=0):
    """The rotary table with some rows exchanged."""
    index = torch.arange(table.shape[axis])
    index[start : start + len(rows)] = start + rows
    return table.index_select(axis, index)


def source_rows():
    """Row of the rotary table each token takes in the paper."""
    made = moved(paths(PATH, 4, 6), 4, 6)
    flat = torch.arange(72)
    place = flat % 24
    row, column = place // 6 + made.shift[:, 0].long(), place % 6 + made.shift[:, 1].long()
    return flat // 24 * 24 + row * 6 + column


def patch_table(monkeypatch, name, diffusion):
    rows = source_rows()
    if name == "wan":
        stock = diffusion.rope_encode
        monkeypatch.setattr(diffusion, "rope_encode", lambda *a, **k: gathered(stock(*a, **k), 1, rows))
    elif name == "hunyuan_video":
        stock = diffusion.pe_embedder.forward
        text = 5 if later_hosts.hunyuan_text_first() else 0
        monkeypatch.setattr(diffusion.pe_embedder, "forward", lambda ids: gathered(stock(ids), 2, rows, text))
    elif name == "ltx":
        owner, table = later_hosts.ltx_table(diffusion)
        stock = getattr(owner, table)
        monkeypatch.setattr(owner, table, lambda *a, **k: later_hosts.on_ltx_table(stock(*a, **k), lambda made, axis: gathered(made, axis, rows)))
    elif name == "kandinsky5":
        stock = diffusion.rope_encode_3d
        monkeypatch.setattr(diffusion, "rope_encode_3d", lambda *a, **k: gathered(stock(*a, **k), 1, rows))
    elif name.startswith("cogvideo"):
        stock = diffusion._get_rotary_emb
        monkeypatch.setattr(diffusion, "_get_rotary_emb", lambda *a, **k: tuple(gathered(table, 0, rows) for table in stock(*a, **k)))
    else:
        stock = diffusion.pos_embedder.generate_embeddings
        monkeypatch.setattr(diffusion.pos_embedder, "generate_embeddings", lambda *a, **k: gathered(stock(*a, **k), 0, rows))


@pytest.mark.host
@pytest.mark.parametrize("name", list(LATENT))
def test_turning_queries_and_keys_is_a_gather_of_the_rotary_table(host, monkeypatch, name):
    model = big(name)
    stock = tiny_models.sample(model.patcher, model, steps=1)
    turned = attach(model.patcher, method(name, mask_end=0.0, rope_end=1.0, twins=False))
    ours = tiny_models.sample(turned, model, steps=1)
    assert record_of(turned).last.touched[OWNER] > 0
    patch_table(monkeypatch, name, model.patcher.get_model_object("diffusion_model"))
    want = tiny_models.sample(model.patcher, model, steps=1)
    change, error = (want - stock).abs().max(), (ours - want).abs().max()
    assert change > 1e-4 * stock.abs().max()
    assert error < 2e-3 * change + 2e-5 * stock.abs().max(), f"{error:.2e} of {change:.2e}"


@pytest.mark.host
@pytest.mark.parametrize("name", ["wan", "ltx", "cosmos_predict2"])
def test_runs_on_models_with_cross_attention(host, name):
    model = big(name)
    stock = tiny_models.sample(model.patcher, model)
    patched = attach(model.patcher, method(name, mask_end=0.5, rope_end=0.5))
    ours = tiny_models.sample(patched, model)
    run = record_of(patched).last
    assert torch.isfinite(ours).all() and not torch.equal(ours, stock)
    parts = {(e.kind, e.parts): n for e, n in run.entries.items() if e.planned}
    assert set(parts) == {("self", ("labels", "rotation")), ("cross", ("asides",))}
    assert {"after the last step of the separation" in e.reason or "after the last step of the moved positions" in e.reason for e in run.entries if not e.planned} == {True}
    assert torch.equal(ours, tiny_models.sample(patched, model)), "a second run is the same"
    assert torch.equal(stock, tiny_models.sample(model.patcher, model)), "the model itself is as before"


@pytest.mark.host
def test_texts_are_read_as_the_model_reads_its_prompt(host):
    """A box that fills the picture with another prompt is that prompt: the projections are the block's own."""
    everywhere = torch.tensor([[[0.0, 0.0, 1.0, 1.0]] * 3], dtype=torch.float64)
    for name in ("wan", "ltx", "cosmos_predict2"):
        model = big(name)
        other = text(7, WIDTH[name])
        ours = tiny_models.sample(attach(model.patcher, DiTraj(boxes=everywhere, background=text(8, WIDTH[name]), foregrounds=(other,), mask_end=1.0)), model)
        want = tiny_models.sample(model.patcher, model._replace(positive=[[other, *model.positive[0][1:]]]))
        assert (ours - want).abs().max() < 2e-4, name
        assert (ours - tiny_models.sample(model.patcher, model)).abs().max() > 50 * (ours - want).abs().max()


@pytest.mark.host
def test_a_schedule_in_two_parts_is_counted_as_one(host, monkeypatch):
    """Wan 2.2's two experts: what belongs to the first steps does not begin anew in the second sampler."""
    import comfy.sample

    model, acted = big("wan"), []
    original = DiTraj._early

    def early(self, call, share):
        found = original(self, call, share)
        acted.append((round(call.sigma, 5), share, found))
        return found

    monkeypatch.setattr(DiTraj, "_early", early)
    patched = attach(model.patcher, method("wan"))
    noise = comfy.sample.prepare_noise(model.latent, 1)

    def levels(**part):
        acted.clear()
        latent = part.pop("latent", model.latent)
        start = torch.zeros_like(noise) if part.get("disable_noise") else noise
        out = comfy.sample.sample(patched, start, 10, 1.0, "euler", "simple", model.positive, model.negative, latent, disable_pbar=True, seed=1, **part)
        return out, {share: {sigma for sigma, s, found in acted if s == share and found} for share in (0.6, 0.1)}

    _, whole = levels()
    half, first = levels(last_step=5, force_full_denoise=False)
    _, second = levels(start_step=5, disable_noise=True, latent=half)
    assert len(whole[0.6]) == 6 and len(whole[0.1]) == 1
    assert first[0.6] | second[0.6] == whole[0.6] and len(second[0.6]) == 1
    assert first[0.1] == whole[0.1] and not second[0.1]
    _, late = levels(denoise=0.5)
    assert not late[0.1]


@pytest.mark.host
def test_a_prompt_as_long_as_the_joined_text_or_a_multiple_is_told_from_it(host):
    """Joined 7 tokens, the prompt 14: after its share of the steps the prompt is read whole."""
    m = method("hunyuan_video", prompt_tokens=14, rope_end=0.0)
    for progress, separated in ((0.0, True), (0.9, False)):
        call = call_of("joint", spans_q=(VIDEO, Span("text", 14)), progress=progress)
        assert m._separates(call) == separated
    assert m._separates(call_of("joint", spans_q=(VIDEO, Span("text", 7)), progress=0.9)), "the joined text itself"
    repeated = method("hunyuan_video", prompt_tokens=6, rope_end=0.0)  # beside a negative prompt of 7 tokens the host makes 42 of both
    assert not repeated._separates(call_of("joint", spans_q=(VIDEO, Span("text", 42)), progress=0.9))


@pytest.mark.host
def test_texts_of_another_encoder_are_named_on_joint_models_too(host):
    from attention_loom.core.tracks import KeyFrame, Track, Tracks
    from attention_loom.nodes import ditraj

    model, other = big("hunyuan_video"), [[text(1, 32), {}]]
    drawn = Tracks(9, 96, 64, (Track("it", (KeyFrame(0, (0, 0, 0.5, 0.6)), KeyFrame(8, (0.4, 0.2, 0.9, 0.8)))),))
    with pytest.raises(LoomError, match="width 32 and the positive prompt 48"):
        ditraj.configure(model.patcher, model.positive, [other], other, drawn)


@pytest.mark.host
@pytest.mark.parametrize("name", ["hunyuan_video", *tiny_models.here("cogvideo", "cogvideo_15")])
def test_joint_models_read_the_joined_text_first_and_the_prompt_then(host, name):
    model = big(name)
    half, clock = 0.5, model.patcher.model.model_sampling.percent_to_sigma
    if model.facts.sigma is not None:  # sampled in the last part of the schedule: half of it by the model's clock
        half = next(p / 1000 for p in range(1000) if float(clock(p / 1000)) < 0.6 * model.facts.sigma)
    m = method(name, mask_end=half, rope_end=half)
    texts = [m.background, *m.foregrounds]
    both = model._replace(positive=joined(model.positive, texts, half))
    patched = attach(model.patcher, m)
    ours = tiny_models.sample(patched, both, steps=4)
    run = record_of(patched).last
    assert torch.isfinite(ours).all()
    planned = {(e.kind, e.parts) for e in run.entries if e.planned}
    refiner = {("other", ("labels",))} if name == "hunyuan_video" else set()
    assert {("joint", ("labels", "rotation")), *refiner} <= planned
    assert any(not e.planned and e.kind == "joint" for e in run.entries), "the last steps are stock"


@pytest.mark.host
def test_off_is_bit_identical(host):
    model = big("wan")
    stock = tiny_models.sample(model.patcher, model)
    for off in (method(strength=0.0), method(mask_end=0.0, rope_end=0.0)):
        assert methods_of(attach(model.patcher, off)) == ()
    still = method(path=PATH[:, :1].repeat(1, 3, 1), mask_end=0.0, rope_end=1.0)
    patched = attach(model.patcher, still)
    assert torch.equal(stock, tiny_models.sample(patched, model)), "a box that does not move leaves positions alone"
    assert record_of(patched).last.touched == {OWNER: 0}


@pytest.mark.host
def test_prompts_that_run_apart_give_the_same(host, monkeypatch):
    model = big("wan")
    patched = attach(model.patcher, method(rope_end=1.0))
    together = tiny_models.sample(patched, model)
    monkeypatch.setattr(type(model.patcher.model), "memory_required", lambda *a, **k: 1e30)
    assert (together - tiny_models.sample(patched, model)).abs().max() < 2e-6 * together.abs().max()


@pytest.mark.host
def test_other_nodes_in_any_order(host):

    model = big("wan")
    others = [UltraViCo(train_frames=2, alpha=0.9), RIFLEx(k=6)]
    mine = method(rope_end=1.0)
    one, other = model.patcher, model.patcher
    for m in (mine, *others):
        one = attach(one, m)
    for m in (*reversed(others), mine):
        other = attach(other, m)
    ours = tiny_models.sample(one, model)
    assert torch.equal(ours, tiny_models.sample(other, model))
    parts = {e.parts for e in record_of(one).last.entries if e.planned and e.kind == "self"}
    assert any({"labels", "modulation", "rotation"} <= set(p) for p in parts)


@pytest.mark.host
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: method(mask_end=1.5), "mask_end 1.5 was given"),
        (lambda: DiTraj(boxes=PATH), "has 1 objects and 0 foreground texts"),
        (lambda: attach(tiny_models.tiny("flux").patcher, method()), "moves rotary positions of a video, and FLUX has none"),
        (lambda: attach(tiny_models.tiny("mochi").patcher, method()), "Mochi has none"),
        (lambda: attach(tiny_models.tiny("cosmos").patcher, method()), "the text of Cosmos cannot be reached; set mask_end to 0"),
        (lambda: attach(tiny_models.tiny("wan").patcher, method("ltx")), "has the width 48 and the model reads 4096"),
        (lambda: tiny_models.sample(attach(big("wan").patcher, method(path=PATH[:, :2])), big("wan")), "the path has 2 latent frames and the video 3"),
        (lambda: tiny_models.sample(attach(big("wan").patcher, method()), tiny_models.tiny("wan")), "covers 1 x 1 tokens of a picture of 3 x 2"),
        (lambda: text_of([[text(1), {}]] * 2, "background"), "the background text consists of 2 conditionings"),
        (lambda: text_of([[text(1), {"attention_mask": torch.tensor([[1, 0, 1, 1, 0]])}]], "background"), "leaves out tokens in its middle"),
    ],
)
def test_what_does_not_fit_is_said(host, make, words):
    with pytest.raises(LoomError, match=words):
        make()


def test_texts_of_a_conditioning():
    assert text_of([[text(1), {}]], "x").shape == (1, 5, 48)
    assert text_of([[text(1), {"attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}]], "x").shape == (1, 3, 48)
    base = [[text(1), {"pooled_output": 5, "attention_mask": 1, "start_percent": 0.2}]]
    first, second = joined(base, [text(2, n=2), text(3, n=4)], 0.6)
    assert first[0].shape == (1, 6, 48) and first[1] == {"pooled_output": 5, "start_percent": 0.2, "end_percent": 0.6}
    assert second[0] is base[0][0] and second[1] == {"pooled_output": 5, "attention_mask": 1, "start_percent": 0.6, "end_percent": 1.0}
    assert len(joined(base, [text(2)], 0.1)) == 1 and len(joined(base, [text(2)], 1.0)) == 1


def test_blocks_can_be_chosen():
    m = replace(method(), blocks=BlockSelection.parse("1"))
    assert not m.wants(call_of("self")) and m.wants(call_of("self", block=Block("block", 1, 1, 2)))


# --- the nodes --------------------------------------------------------------------------------------------------------


def drawn(frames=9):
    from attention_loom.core.tracks import KeyFrame, Track, Tracks

    keys = (KeyFrame(0, (0.0, 0.0, 0.4, 0.5)), KeyFrame(frames - 1, (0.6, 0.5, 1.0, 1.0)))
    return Tracks(frames, 96, 64, (Track("it", keys),))


def texts(name):
    width = WIDTH[name]
    return {key: [[text(seed, width, n), {"pooled_output": torch.zeros(1, 768)}]] for key, seed, n in (("base", 4, 6), ("foreground", 5, 4), ("background", 6, 3))}


@pytest.mark.host
def test_the_node_samples_the_path_once_per_latent_frame(host):
    from attention_loom.nodes.ditraj import LoomDiTraj

    wan = big("wan")
    patched, positive = LoomDiTraj.execute(wan.patcher, **texts("wan"), track=drawn(), mask_end=0.5, rope_end=0.25).result
    (m,) = methods_of(patched)
    assert m.boxes.shape == (1, 3, 4) and m.boxes[0, 1].tolist() == pytest.approx([0.3, 0.25, 0.7, 0.75])
    assert (m.mask_end, m.rope_end, m.twins, m.inclusive, m.prompt_tokens) == (0.5, 0.25, True, False, 6)
    assert len(positive) == 1 and positive[0][0].shape == (1, 6, 4096)
    ltx = big("ltx")
    (m,) = methods_of(LoomDiTraj.execute(ltx.patcher, **texts("ltx"), track=drawn(17)).result[0])
    assert m.boxes.shape == (1, 3, 4), "LTX packs eight frames"
    off, same = LoomDiTraj.execute(wan.patcher, **texts("wan"), track=drawn(), strength=0.0).result
    assert methods_of(off) == () and len(same) == 1


@pytest.mark.host
def test_the_node_joins_the_texts_for_models_of_one_attention(host):
    from attention_loom.nodes.ditraj import LoomDiTraj

    model = big("hunyuan_video")
    given = texts("hunyuan_video")
    patched, positive = LoomDiTraj.execute(model.patcher, **given, track=drawn(), mask_end=0.5).result
    assert [p[0].shape[1] for p in positive] == [7, 6] and positive[0][1]["end_percent"] == positive[1][1]["start_percent"] == 0.5
    assert torch.equal(positive[0][0][:, :3], given["background"][0][0])
    ours = tiny_models.sample(patched, model._replace(positive=positive))
    assert torch.isfinite(ours).all() and record_of(patched).last.touched[OWNER] > 0
    with pytest.raises(LoomError, match="has 1 objects and 2 foreground texts"):
        LoomDiTraj.execute(model.patcher, **given, track=drawn(), foreground_2=given["base"])
    with pytest.raises(LoomError, match="connect the track output of Draw Path"):
        LoomDiTraj.execute(model.patcher, **given, track="{}")


@pytest.mark.host
def test_three_texts_of_one_line(host):
    from attention_loom.nodes.ditraj import split

    base, front, scene, *more = split("a red\n panda |  a mossy forest ", "a close-up of {subject}")
    assert (base, front, scene, more) == ("a red panda, a mossy forest", "a close-up of a red panda", "a mossy forest", ["", "", ""])
    assert split("a cat | a dog | a lawn", "{subject}") == ("a cat and a dog, a lawn", "a cat", "a lawn", "a dog", "", "")
    for line, template, words in (
        ("a cat", "{subject}", "has no subject and scene"),
        ("a | | b", "{subject}", "no subject and scene"),
        ("a|b|c|d|e|f", "{subject}", "5 subjects were given and 4 fit"),
        ("a|b", "x", "has no {subject}"),
    ):
        with pytest.raises(LoomError, match=words):
            split(line, template)
