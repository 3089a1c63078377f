"""Reading the host's attention call in every form it comes in."""

import pytest
import torch
from attention_loom.core import signature

B, H, N, D = 2, 3, 5, 4


def tensors():
    return [torch.randn(B, N, H * D) for _ in range(3)]


def func(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
    """A plain attention with the host's signature."""
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_both_layouts_and_both_ways_to_pass_heads(by_keyword, split):
    flat = tensors()
    given = [x.unflatten(-1, (H, D)).transpose(1, 2) for x in flat] if split else flat
    args, kwargs = ((*given,), {"heads": H}) if by_keyword else ((*given, H), {})
    sig = signature.read(func, *args, **kwargs, skip_reshape=split, transformer_options={"a": 1}, later="kept")
    assert sig.q.shape == (B, H, N, D)
    assert sig.q.data_ptr() == given[0].data_ptr(), "a view, not a copy"
    assert sig.options == {"a": 1}
    assert sig.kwargs["later"] == "kept"
    stock = func(*given, H, skip_reshape=split)
    assert torch.equal(sig.stock(None), stock)
    assert torch.allclose(sig.give(sig.dense(None)(sig.q, sig.k, sig.v)), stock, atol=1e-6)


def test_output_layout_is_the_callers():
    q = torch.randn(B, H, N, D)
    out = torch.randn(B, H, N, D)
    assert signature.read(func, q, q, q, H, skip_reshape=True, skip_output_reshape=True).give(out).shape == (B, H, N, D)
    assert signature.read(func, q, q, q, H, skip_reshape=True).give(out).shape == (B, N, H * D)


def test_mask_by_position_and_previous_override():
    q, k, v = tensors()
    seen = []

    def previous(inner, *args, **kwargs):
        seen.append((inner, len(args)))
        return inner(*args, **kwargs)

    mask = torch.zeros(B, 1, 1, N)
    sig = signature.read(func, q, k, v, H, mask)
    assert sig.mask is mask
    sig.stock(previous)
    sig.dense(previous)(sig.q, sig.k, sig.v, mask)
    assert [s[0] for s in seen] == [func, func]


@pytest.mark.parametrize("shape", [(1, N), (B, 1, N), (B, 1, 1, N), (1, H, 1, N)])
def test_key_masks_become_a_bias(shape):
    q, k, v = tensors()
    mask = torch.randn(shape)
    bias = signature.read(func, q, k, v, H, mask=mask).key_bias()
    assert bias.ndim == 3
    assert bias.dtype == torch.float32
    full = torch.broadcast_to(bias[:, :, None], (B, H, N, N))
    while mask.ndim < 4:
        mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
    assert torch.equal(full, torch.broadcast_to(mask, (B, H, N, N)))


def test_a_boolean_mask_forbids():
    q, k, v = tensors()
    bias = signature.read(func, q, k, v, H, mask=torch.tensor([[True, True, False, True, True]])).key_bias()
    assert bias[0, 0].tolist() == [0, 0, float("-inf"), 0, 0]


def test_a_mask_per_query_is_refused():
    q, k, v = tensors()
    with pytest.raises(ValueError, match="differs from query to query"):
        signature.read(func, q, k, v, H, mask=torch.zeros(N, N)).key_bias()


def test_what_is_no_attention_call_is_said():
    with pytest.raises(TypeError, match="without k, v, heads"):
        signature.read(func, torch.zeros(1))
    with pytest.raises(TypeError, match="list"):
        signature.read(func, [], [], [], 1)


def test_values_whose_heads_are_apart_already():
    """SD3 calls with q, k [B, N, H*D] and v [B, N, H, D]."""
    q, k = (torch.randn(2, 7, 12) for _ in range(2))
    v = torch.randn(2, 7, 3, 4)
    sig = signature.read(lambda *a, **k: None, q, k, v, 3)
    assert sig.v.shape == sig.q.shape == (2, 3, 7, 4)
    assert torch.equal(sig.v[:, 1], v[:, :, 1])
