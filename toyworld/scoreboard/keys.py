"""Keys of finished clips: what a clip and its numbers depend on, as short hashes.

A clip depends on its graph, the checkpoints, the host's version and the method's own code. Code is hashed as it is parsed: comments, docstrings and
layout do not count. The shared core and kernels are no part of the key, for every commit there would throw everything away; their hash is
kept beside the clip, and the page says how many clips were drawn by an earlier one.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...tools.headless import ROOT, host_dir

SHARED = ("core", "kernels", "nodes")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@lru_cache
def file_key(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@lru_cache
def code_key(path: Path) -> str:
    """Of what a Python file does: its syntax tree without docstrings and positions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            del body[0]
    return _digest(ast.dump(tree))


@lru_cache
def shared_key() -> str:
    """Of the whole pack's code."""
    return _digest(*(code_key(path) for folder in SHARED for path in sorted((ROOT / folder).rglob("*.py"))))


@lru_cache
def _host_version() -> str:
    path = host_dir() / "comfyui_version.py"
    return code_key(path) if path.is_file() else ""


def clip_key(graph: dict[str, Any], checkpoints: tuple[Path, ...], code: tuple[str, ...]) -> str:
    """Of what a clip depends on. code: files relative to the pack's root; a ValueError names one that is not there."""
    if absent := [name for name in code if not (ROOT / name).is_file()]:
        raise ValueError(f"A row of the scoreboard lists {absent[0]} as its code, and there is no such file.")
    return _digest(json.dumps(graph, sort_keys=True), _host_version(), *map(file_key, checkpoints), *(code_key(ROOT / name) for name in code))


def numbers_key(measure: Callable[..., Any], readers: tuple[str, ...]) -> str:
    """Of the code that reads numbers from pixels: the world's readers (files relative to the pack's root) and the row's own function over them."""
    return _digest(*(code_key(ROOT / name) for name in readers), ast.dump(ast.parse(textwrap.dedent(inspect.getsource(measure)))))
