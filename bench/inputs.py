"""Queries, keys and values to measure with: random, shaped like those of a video model, or captured from one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .shapes import Shape

Triple = tuple[Tensor, Tensor, Tensor]


def random(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> Triple:
    """N(0,1) entries [1,H,N,D]: what the accuracy targets are stated for."""
    generator = torch.Generator(device).manual_seed(seed)

    def one() -> Tensor:
        return torch.randn(1, shape.heads, shape.count, shape.width, dtype=dtype, device=device, generator=generator)

    return one(), one(), one()


def structured(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> Triple:
    """[1,H,N,D] whose attention is peaked and local, as that of a trained model: content in patches, turned by position.

    Each patch of the grid has a content vector; q and k are that vector plus noise, rotated by frequencies of the grid
    position; reach and sharpness differ from head to head, and k has a mean. Text tokens have contents of their own.
    """
    generator = torch.Generator(device).manual_seed(seed)
    n, d = shape.count, shape.width
    place = _positions(shape).to(device)
    patch = (place // torch.tensor([2.0, 6.0, 6.0], device=device)).long()
    patch = (patch[:, 0] * 4096 + patch[:, 1]) * 4096 + patch[:, 2]
    _, patch = patch.unique(return_inverse=True)
    frequency = torch.logspace(0, -2, d // 2, device=device)
    q, k, v = (torch.empty(1, shape.heads, n, d, dtype=dtype, device=device) for _ in range(3))
    for h in range(shape.heads):  # one head at a time: fp32 temporaries of all heads would double the memory
        contents = torch.randn(int(patch.max()) + 1, d, device=device, generator=generator)
        share = h / max(shape.heads - 1, 1)
        reach, sharpness = 4.0 * 16.0**share, 0.8 + 0.6 * share
        angle = (place.sum(-1, keepdim=True) / reach) * frequency
        content = contents[patch]
        for x, noise in ((q, 0.7), (k, 0.7)):
            x[0, h] = _turn(sharpness * (content + noise * torch.randn(n, d, device=device, generator=generator)), angle).to(dtype)
        k[0, h] += torch.randn(d, device=device, generator=generator).to(dtype)
        v[0, h] = (content + torch.randn(n, d, device=device, generator=generator)).to(dtype)
    return q, k, v


def captured(path: Path, shape: Shape, dtype: torch.dtype, device: str) -> Triple:
    """q, k, v [1,H,N,D] from a ``torch.save``d dict of three tensors. Raises ValueError where they do not fit ``shape``."""
    found = torch.load(path, map_location=device, weights_only=True)
    want = (1, shape.heads, shape.count, shape.width)
    for name in "qkv":
        if name not in found or tuple(found[name].shape) != want:
            raise ValueError(f"{path.name}: {name} has shape {list(found[name].shape) if name in found else None}; {shape.name} needs {list(want)}")
    return found["q"].to(dtype), found["k"].to(dtype), found["v"].to(dtype)


def _positions(shape: Shape) -> Tensor:
    """fp32 [N, 3]: place of each token on the grid; text far off on a line of its own."""
    t, y, x = shape.grid
    grid = torch.stack(torch.meshgrid(torch.arange(t), torch.arange(y), torch.arange(x), indexing="ij"), -1).view(-1, 3)
    text = torch.stack([torch.full((shape.text,), 1000), torch.arange(shape.text), torch.zeros(shape.text, dtype=torch.long)], -1)
    return torch.cat([text, grid] if shape.text_first else [grid, text]).float()


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
