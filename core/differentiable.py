"""The host's model, made differentiable for one forward pass and left exactly as it was.

The host runs inside inference mode: its weights, latents and conditionings are inference tensors, which autograd refuses to save.
:func:`thawed` puts ordinary tensors *on the same memory* in their place and takes them out again, so nothing is copied and the
model's own tensor objects return untouched. :func:`plain_attention` replaces kernels without a backward by the host's PyTorch
attention; :func:`positive_only` makes a conditioning fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from . import fused_backward
from .errors import LoomError

COMPILED = "torch.compile"
"""Key of the host's wrapper that runs a compiled model; a gradient takes the plain one."""


@contextmanager
def gradients(outside: nn.Module | None = None, in_place: bool = True) -> Iterator[None]:
    """Autograd on, whatever surrounds it; activations that a model updates in place (FLUX) are kept for the backward pass.

    outside: a model whose activations shall wait in system memory; its weights stay where they are. in_place: False for models that
    update nothing in place (U-Nets): looking at every operation for that takes a third of the time of a small model.
    """
    graph = torch.autograd.graph
    hooks = nullcontext() if outside is None else graph.saved_tensors_hooks(*_moving_out(outside))
    kept = _mutable() if in_place else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), with_backward(), kept, hooks:
        yield


@contextmanager
def with_backward() -> Iterator[None]:
    """The host's own operations in the form that has a backward pass.

    Later hosts than 0.3.75 run rotary embeddings and norms through fused kernels without one, unless they are told that a training is on.
    """
    fused_backward.learn()
    host = sys.modules.get("comfy.model_management")  # not imported: without a host there is nothing to tell
    if not hasattr(host, "in_training"):
        yield
        return
    before, host.in_training = host.in_training, True  # type: ignore[union-attr]
    try:
        yield
    finally:
        host.in_training = before  # type: ignore[union-attr]


@contextmanager
def _mutable() -> Iterator[None]:
    """torch's ``allow_mutation_on_saved_tensors`` without its mix-ups.

    It knows a saved tensor by the object's id, its address and its version, and lets go of a tensor once it was changed in place and copied. The next
    tensor may get the same three while the first is still wanted, and the backward pass then reads the first one for both (seen in torch 2.11: now and then
    another gradient for FLUX). So changed tensors are held until the context ends.
    """
    with torch.autograd.graph.allow_mutation_on_saved_tensors() as context:
        context.original = _Held()  # type: ignore[attr-defined]
        yield


class _Held(WeakKeyDictionary):  # type: ignore[type-arg]
    """A dictionary whose deleted values live as long as it does."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: list[Tensor] = []

    def __delitem__(self, key: Any) -> None:
        self.deleted.append(self[key])
        super().__delitem__(key)


def _moving_out(model: nn.Module) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """What autograd keeps -> system memory, and back. A copy, so that what changes in place later does no harm."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def out(kept: Tensor) -> tuple[torch.device | None, Tensor]:
        if kept.untyped_storage().data_ptr() in weights:
            return None, kept.detach()
        return kept.device, kept.detach().to("cpu", copy=True)

    def back(packed: tuple[torch.device | None, Tensor]) -> Tensor:
        device, kept = packed
        return kept if device is None else kept.to(device)

    return out, back


@contextmanager
def thawed(model: nn.Module) -> Iterator[None]:
    """Weights, buffers and constants of ``model`` as ordinary tensors without gradient, on the same memory. Enter with
    inference mode off. Tensor subclasses (quantised weights) stay as they are.
    """
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in model.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
            for slots in tables:
                for name, value in list(slots.items()):
                    if type(value) in (Tensor, nn.Parameter) and (value.is_inference() or value.requires_grad):
                        kept.append((slots, name, value))
                        plain = _same_memory(value)
                        replaced: Tensor = nn.Parameter(plain, False) if isinstance(value, nn.Parameter) else plain
                        slots[name] = replaced
        yield
    finally:
        for slots, name, value in reversed(kept):
            slots[name] = value


def _same_memory(value: Tensor) -> Tensor:
    out = torch.empty(0, dtype=value.dtype, device=value.device)
    return out.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())


@contextmanager
def explained(owner: str, advice: str, way_out: str = "") -> Iterator[None]:
    """What autograd says, as a sentence for users. advice: what to do where memory is short; way_out: what else where there is no gradient."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LoomError(f"{owner} ran out of memory while taking a gradient; {advice}.") from error
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoomError(
            f"{owner} could not take a gradient through this model ({reason}); quantised or compiled layers have none: load the model in fp16, bf16 or fp32{way_out}."
        ) from error


def plain(value: Any) -> Any:
    """The same value with inference tensors copied into ordinary ones; lists and tuples are walked."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    return value


def positive_only(entry: dict[str, Any]) -> dict[str, Any]:
    """A prepared conditioning entry for a gradient pass: ordinary tensors; a ControlNet as a constant of the gradient."""
    out = dict(entry)
    out["model_conds"] = {name: cond._copy_with(plain(cond.cond)) for name, cond in entry["model_conds"].items()}
    if entry.get("control") is not None:
        out["control"] = _Constant(entry["control"])
    return out


class _Constant:
    """A ControlNet whose output enters the pass, but through which no gradient flows."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def get_control(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the ControlNet's own."""
        with torch.no_grad():
            found = self._control.get_control(x.detach(), *args, **kwargs)
        return None if found is None else {place: plain(outputs) for place, outputs in found.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)


def options_for_gradient(model_options: dict[str, Any], override: str) -> dict[str, Any]:
    """``model_options`` of a run for a gradient pass: differentiable attention in the slot ``override``, no compiled model."""
    import comfy.patcher_extension as extension

    options = dict(model_options.get("transformer_options", {}))
    options[override] = plain_attention()
    wrappers = dict(options.get("wrappers", {}))
    kind = extension.WrappersMP.APPLY_MODEL
    if kind in wrappers:
        wrappers[kind] = {key: value for key, value in wrappers[kind].items() if key != COMPILED}
        options["wrappers"] = wrappers
    return dict(model_options) | {"transformer_options": options}


def plain_attention() -> Callable[..., Tensor]:
    """An attention override that runs the host's PyTorch attention, whatever the user chose: others have no backward."""
    from comfy.ldm.modules.attention import attention_pytorch

    attention = getattr(attention_pytorch, "__wrapped__", attention_pytorch)

    def override(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return attention(*args, **kwargs)

    return override
