"""Reading the toy worlds' files, with one sentence for every file that is not one."""

import json
from typing import Any


def read(path: str, key: str, what: str) -> tuple[dict[str, Any], dict]:
    """Metadata entry `key` (JSON) and the tensors of a safetensors file; a ValueError if it is not `what` ("a toy text encoder")."""
    metadata, tensors = read_any(path, what)
    if key not in metadata:
        raise ValueError(f"{path} is not {what}: its metadata has no {key!r}, which the toy world's trainer writes.")
    return parse(path, metadata, key, what), tensors


def read_any(path: str, what: str) -> tuple[dict[str, str], dict]:
    """Metadata and tensors of a safetensors file; a ValueError if it cannot be read as one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not {what}: expected a safetensors file written by the toy world's trainer ({error!r}).") from error


def parse(path: str, metadata: dict[str, str], key: str, what: str) -> dict[str, Any]:
    """A metadata entry that holds a JSON object."""
    try:
        value = json.loads(metadata[key])
    except ValueError as error:
        raise ValueError(f"{path} is not {what}: its metadata {key!r} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not {what}: its metadata {key!r} is not a JSON object.")
    return value


def check_tensors(path: str, what: str, found: dict, wanted: dict) -> None:
    """A ValueError unless `found` has every tensor of `wanted` (name -> tensor) in its shape."""
    for name, tensor in wanted.items():
        if name not in found:
            raise ValueError(f"{path} is not {what} of the sizes it states: the tensor {name} is missing.")
        if found[name].shape != tensor.shape:
            raise ValueError(f"{path} is not {what} of the sizes it states: {name} has shape {list(found[name].shape)} instead of {list(tensor.shape)}.")
