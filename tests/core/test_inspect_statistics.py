"""Statistics of attention rows against values known in closed form and against plain loops over an explicit softmax."""

import math

import pytest
import torch
from attention_loom.core.call import Span, TokenLayout
from attention_loom.core.inspect import indicator
from attention_loom.core.inspect.frames import suggest
from attention_loom.core.inspect.labels import RULES, label
from attention_loom.core.inspect.measure import measure, rows_of_points
from attention_loom.core.inspect.patterns import clusters, components, features
from attention_loom.core.inspect.rows import probabilities, stratified
from attention_loom.core.inspect.statistics import Sums, key_kinds, masses

ALL = 10_000  # more rows than any token count here: every row is read
PICTURE = TokenLayout((Span("text", 5), Span("image", 12, (1, 3, 4)), Span("reference", 2)))
VIDEO = TokenLayout((Span("video", 24, (4, 2, 3)), Span("text", 3)))
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # kept numbers are fp32


def inputs(layout, heads=3, batch=2, width=16, dtype=torch.float64, key_heads=None):
    g = torch.Generator().manual_seed(0)
    shape = lambda h: (batch, h, layout.length, width)  # noqa: E731
    return tuple(torch.randn(shape(h), generator=g, dtype=torch.float64).to(dtype) for h in (heads, key_heads or heads))


def sdpa(q, k, v, mask=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def explicit(q, k, mask=None):
    s = q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) / q.shape[-1] ** 0.5
    return (s if mask is None else s + mask.double()).softmax(-1)


# --- closed form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [PICTURE, VIDEO], ids=["picture", "video"])
def test_no_preference_at_all(layout):
    q, k = inputs(layout)
    stats = measure(torch.zeros_like(q), k, layout, layout, ALL)
    n, (t, y, x) = layout.length, layout.grid
    assert torch.allclose(stats.scalars["entropy"], torch.ones(3))
    assert torch.allclose(stats.scalars["perplexity"], torch.full((3,), float(n)))
    for kind, ranges in key_kinds(layout).items():
        assert torch.allclose(stats.scalars[f"{kind} mass"], torch.full((3,), sum(hi - lo for lo, hi in ranges) / n))
    # S(r): the mean over all places of the share of keys at Chebyshev distance r
    places = [(a, b) for a in range(y) for b in range(x)]
    rings = torch.zeros(max(y, x))
    for a, b in places:
        for c, d in places:
            rings[max(abs(a - c), abs(b - d))] += 1 / len(places) ** 2
    assert torch.allclose(stats.rings, rings.expand(3, -1), atol=1e-6)
    assert torch.allclose(stats.scalars["row"], torch.ones(3), atol=1e-5)
    assert torch.allclose(stats.scalars["column"], torch.ones(3), atol=1e-5)
    if t > 1:
        assert torch.allclose(stats.per_frame, torch.full_like(stats.per_frame, 1 / t), atol=1e-6)


def test_every_token_at_itself():
    n = VIDEO.length
    q = 1e4 * torch.eye(n).expand(1, 1, n, n)
    stats = measure(q, torch.eye(n).expand(1, 1, n, n), VIDEO, VIDEO, ALL)
    for name, value in {"entropy": 0, "own token": 1, "own place": 1, "distance": 0, "rms distance": 0, "same frame": 1, "image mass": 1, "same place, other frames": 0}.items():
        assert float(stats.scalars[name]) == pytest.approx(value, abs=1e-6), name
    assert stats.rings[0].tolist() == [1.0] + [0.0] * (stats.rings.shape[1] - 1)


# --- against other ways to the same number -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_indicator_masses_rms_and_entropy_agree_with_sampled_rows(dtype):
    """The identities of the indicator trick, through a fused attention, against the row statistics and an explicit softmax."""
    q, k = inputs(PICTURE, dtype=dtype)
    lo, n, (_, y, x) = 5, 12, (1, 3, 4)
    truth = explicit(q, k)
    exact = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]

    place = torch.arange(n)
    py, px = (place // x).to(dtype), (place % x).to(dtype)
    columns = torch.zeros(PICTURE.length, 6, dtype=dtype)
    columns[:5, 0] = columns[lo : lo + n, 1] = 1
    columns[lo : lo + n, 2], columns[lo : lo + n, 3], columns[lo : lo + n, 4] = px, py, px**2 + py**2
    columns[3, 5] = 1
    read = indicator.read(sdpa, q, k, columns)
    assert (read - truth @ columns.double()).abs().max() < exact

    rows = read[:, :, lo : lo + n]
    image, ex, ey, e2 = rows[..., 1], rows[..., 2] / rows[..., 1], rows[..., 3] / rows[..., 1], rows[..., 4] / rows[..., 1]
    square = e2 - 2 * (px * ex + py * ey) + px**2 + py**2  # E|p_j|^2 - 2 p_i E[p_j] + |p_i|^2
    keys = sdpa(q, k, k)
    lse = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).logsumexp(-1)
    entropy = (lse - (q * keys).sum(-1) / q.shape[-1] ** 0.5)[:, :, lo : lo + n]

    stats = measure(q, k, PICTURE, PICTURE, ALL)
    diagonal = math.hypot(y - 1, x - 1)
    close = dict(atol=TOLERANCE[dtype], rtol=1e-5)
    assert torch.allclose(stats.scalars["text mass"], rows[..., 0].mean((0, 2)).float(), **close)
    assert torch.allclose(stats.scalars["image mass"], image.mean((0, 2)).float(), **close)
    assert torch.allclose(stats.scalars["rms distance"] * diagonal, square.mean((0, 2)).sqrt().float(), **close)
    assert torch.allclose(stats.scalars["entropy"] * math.log(PICTURE.length), entropy.mean((0, 2)).float(), **close)


def test_columns_beyond_the_head_width_take_more_passes():
    q, k = inputs(PICTURE, width=4)
    assert (indicator.read(sdpa, q, k, torch.eye(PICTURE.length).double()) - explicit(q, k)).abs().max() < 1e-10
    assert (indicator.read(sdpa, q, k, torch.eye(PICTURE.length).double(), scale=0.3) - explicit(q * 0.3 * 2, k)).abs().max() < 1e-10


@pytest.mark.parametrize("budget", [2**27, 900], ids=["whole", "pieces"])
def test_offsets_distance_and_frames_against_loops(budget):
    q, k = inputs(VIDEO, key_heads=1)
    a = explicit(q, k)
    t, y, x = VIDEO.grid
    offsets, frames, distance, other = torch.zeros(3, 2 * y - 1, 2 * x - 1), torch.zeros(3, 2 * t - 1), torch.zeros(3), torch.zeros(3)
    coordinates = [(f, b, c) for f in range(t) for b in range(y) for c in range(x)]
    for b in range(2):
        for h in range(3):
            for i, (fi, yi, xi) in enumerate(coordinates):
                row = a[b, h, i, :24] / a[b, h, i, :24].sum()
                own = sum(row[j] for j, c in enumerate(coordinates) if c[0] == fi)
                for j, (fj, yj, xj) in enumerate(coordinates):
                    frames[h, fj - fi + t - 1] += row[j] / 48
                    if fj == fi:
                        offsets[h, yj - yi + y - 1, xj - xi + x - 1] += row[j] / own / 48
                        distance[h] += row[j] / own * math.hypot(yj - yi, xj - xi) / math.hypot(y - 1, x - 1) / 48
                    elif (yj, xj) == (yi, xi):
                        other[h] += row[j] / 48
    sums = Sums(3, VIDEO, True, q.device, torch.float64)
    for heads, part, piece in probabilities(q, k, torch.arange(24), budget=budget):
        sums.add(heads, torch.arange(24)[part], piece)
    stats = sums.finish()
    assert (sums.offsets / sums.placed[:, None, None] - offsets).abs().max() < 1e-6
    assert (stats.frames - frames).abs().max() < 1e-6
    assert (stats.scalars["distance"] - distance).abs().max() < 1e-6
    assert (stats.scalars["same place, other frames"] - other).abs().max() < 1e-6
    assert (sums.popular / sums.rows[:, None] - a[:, :, :24].mean((0, 2))).abs().max() < 1e-10


@pytest.mark.parametrize("layout", [PICTURE, VIDEO], ids=["picture", "video"])
def test_what_must_sum_to_one(layout):
    stats = measure(*inputs(layout, dtype=torch.float32), layout, layout, 7)
    one = torch.ones(3)
    assert torch.allclose(stats.rings.sum(1), one, atol=1e-5)
    assert torch.allclose(sum(v for n, v in stats.scalars.items() if n.endswith(" mass")), one, atol=1e-5)
    assert torch.allclose(sum(stats.text_rows.values()), one, atol=1e-5)  # text queries: their blocks of the joint attention
    if layout is VIDEO:
        assert torch.allclose(stats.frames.sum(1), one, atol=1e-5)


def test_masses_of_split_spans():
    layout = TokenLayout((Span("text", 2), Span("image", 4, (1, 2, 2)), Span("text", 1)))
    a = torch.tensor([0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.3])
    assert float(masses(a, key_kinds(layout))["text"]) == pytest.approx(0.6)


# --- rows, masks, numbers that are none ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "count"), [(96, 10), (97, 96), (7, 5), (5, 5), (3, 9), (0, 4)])
def test_stratified_rows(tokens, count):
    rows = stratified(tokens, count)
    assert len(rows) == min(tokens, count)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.tolist() == sorted(rows.tolist())
    for i, row in enumerate(rows.tolist()):
        assert i * tokens // len(rows) <= row < (i + 1) * tokens // len(rows)


def test_sampled_rows_do_not_share_a_column():
    columns = stratified(64 * 64, 128) % 64
    assert len(set(columns.tolist())) > 32


def test_masked_keys_and_rows_without_keys():
    q, k = inputs(PICTURE, dtype=torch.float32)
    additive = torch.zeros(1, 1, 1, PICTURE.length)
    additive[..., 3:5] = torch.finfo(torch.float32).min
    stats = measure(torch.zeros_like(q), k, PICTURE, PICTURE, ALL, mask=additive)
    assert torch.allclose(stats.scalars["entropy"], torch.ones(3)), "the largest possible entropy is over readable keys"
    assert torch.allclose(stats.scalars["text mass"], torch.full((3,), 3 / 17))
    boolean = measure(torch.zeros_like(q), k, PICTURE, PICTURE, ALL, mask=additive[0, 0] == 0)
    assert torch.allclose(boolean.scalars["text mass"], stats.scalars["text mass"])
    (piece,) = probabilities(q, k, torch.arange(3), mask=torch.zeros(1, 1, 1, PICTURE.length, dtype=torch.bool))
    assert piece[2].abs().max() == 0
    per_query = torch.zeros(PICTURE.length, PICTURE.length)
    per_query[6, :5] = -math.inf
    (piece,) = probabilities(q, k, torch.tensor([5, 6]), mask=per_query)
    assert float(piece[2][:, :, 1, :5].sum()) == 0 < float(piece[2][:, :, 0, :5].sum())


def test_nan_stays_nan_in_its_own_head():
    q, k = inputs(PICTURE, dtype=torch.float32)
    q[:, 1] = math.nan
    assert measure(q, k, PICTURE, PICTURE, ALL).scalars["entropy"].isnan().tolist() == [False, True, False]


def test_point_maps_read_the_row_of_their_place():
    q, k = inputs(VIDEO)
    found = rows_of_points(q, k, VIDEO, ((0.99, 0.0), (1.0, 1.0)))
    row = explicit(q, k)[:, :, [12 + 2, 12 + 5], :24].mean((0, 1))
    assert (found.flatten(1) - row).abs().max() < 1e-6


# --- labels ----------------------------------------------------------------------------------------------------------------

BIG = TokenLayout((Span("text", 6), Span("image", 80, (1, 8, 10))))
FILM = TokenLayout((Span("video", 96, (6, 4, 4)),))


def hand_built(kind, layout):
    """Logits of a head of that kind, [N, N]; the layout's grid behind its text."""
    n, lo, (t, y, x) = layout.length, layout.grid_span[0], layout.grid
    s = torch.zeros(n, n)
    at = torch.arange(t * y * x)
    f, py, px = at // (y * x), at // x % y, at % x
    far = ((py[:, None] - py) ** 2 + (px[:, None] - px) ** 2).float()
    image = s[lo : lo + len(at), lo : lo + len(at)]
    if kind == "self":
        image += 8.0 * torch.eye(len(at))
    elif kind == "local":
        image += 6.0 - 1.2 * far
    elif kind == "row":
        image += 8.0 * (py[:, None] == py)
    elif kind == "column":
        image += 8.0 * (px[:, None] == px)
    elif kind == "sink":
        s[:, lo + 17] = 6.0
    elif kind == "text":
        s[:, :lo] = 5.0
    elif kind == "temporal":
        image += 8.0 * ((far == 0) & (f[:, None] != f)) + 5.0 * (far == 0)
    elif kind == "frame":
        image += 8.0 * (f[:, None] == f)
    elif kind == "content":
        image += 6.0 * torch.randn(1, len(at), generator=torch.Generator().manual_seed(1)).clamp(max=1.2)
    return s


@pytest.mark.parametrize("rows", [ALL, 24], ids=["all_rows", "sampled"])
@pytest.mark.parametrize(
    ("kind", "layout"),
    [*((k, BIG) for k in ("self", "local", "row", "column", "sink", "text", "global", "content")), ("temporal", FILM), ("frame", FILM), ("global", FILM)],
    ids=lambda v: v if isinstance(v, str) else f"{v.grid[0]}f",
)
def test_hand_built_heads_get_their_label(kind, layout, rows):
    s = hand_built(kind, layout)
    stats = measure(s[None, None], torch.eye(layout.length)[None, None], layout, layout, rows, scale=1.0)
    assert label({n: float(v) for n, v in stats.scalars.items()}, layout.grid[0]) == kind
    assert kind in RULES


def test_cross_attention_is_not_called_text():
    assert label({"entropy": 0.5, "text mass": 1.0, "top key": 0.2}) == "content"
    assert label({"entropy": 0.95, "text mass": 1.0, "top key": 0.1}) == "global"


# --- groups ----------------------------------------------------------------------------------------------------------------


def many_heads():
    kinds = ("self", "local", "row", "column", "content")
    noise = torch.Generator().manual_seed(3)
    logits = torch.stack([hand_built(k, BIG) + 0.3 * torch.randn(BIG.length, BIG.length, generator=noise) for k in kinds for _ in range(4)])
    stats = measure(logits[None], torch.eye(BIG.length).expand(1, 20, -1, -1), BIG, BIG, ALL, scale=1.0)
    return features(stats.offsets, stats.popular)


def test_groups_find_the_kinds_and_do_not_depend_on_the_order():
    x = many_heads()
    points = components(x)
    found = clusters(points, 5)
    assert [len(set(found.of[4 * i : 4 * i + 4].tolist())) for i in range(5)] == [1] * 5
    assert len(set(found.of.tolist())) == 5
    assert torch.equal(found.of, clusters(components(x), 5).of)
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    again = clusters(components(x[shuffled]), 5)
    pairs = {(a, b) for a, b in zip(found.of[shuffled].tolist(), again.of.tolist(), strict=True)}
    assert len(pairs) == 5, "only the names of the groups may change"
    assert {int(found.of[m]) for m in found.medoids} == set(range(5))


def test_fewer_heads_than_groups():
    x = many_heads()[:3]
    assert sorted(clusters(components(x), 8).of.tolist()) == [0, 1, 2]
    same = clusters(torch.zeros(4, 2), 3)
    assert same.of.tolist() == [0, 0, 0, 0]


def test_components_keep_distances():
    x = many_heads()
    points = components(x, 20)
    assert torch.allclose(torch.cdist(points, points), torch.cdist(x - x.mean(0), x - x.mean(0)), atol=1e-6)
    assert components(x, 2).shape == (20, 2)


# --- what frames say -------------------------------------------------------------------------------------------------------


def falling(frames):
    return torch.exp(-0.5 * torch.arange(float(frames)))


def test_a_rise_beyond_the_trained_length_is_found():
    curve = falling(12)
    curve[6:] = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.2, 0.1])
    found = suggest(torch.stack([curve, curve, 2 * curve, 0.3 * curve, falling(12)]))
    assert found.train_frames == 6
    assert "up to 5 latent frames apart" in found.reason


@pytest.mark.parametrize(
    ("heads", "why"),
    [(None, "no frames"), (falling(3).expand(4, -1), "too few"), (falling(12).expand(4, -1), "does not rise"), (torch.full((4, 12), 0.1), "does not rise")],
    ids=["picture", "short", "falls", "flat"],
)
def test_no_suggestion_without_evidence(heads, why):
    found = suggest(heads)
    assert found.train_frames is None
    assert why in found.reason


def test_one_wandering_head_is_no_evidence():
    odd = falling(12)
    odd[8] = 0.9
    assert suggest(torch.stack([odd, *([falling(12)] * 3)])).train_frames is None
