"""The training loop of all checkpoints: Muon for matrices and kernels of the blocks, AdamW for everything else, a running average, a resume file.

A task is a module with `loss(pool, step, steps, generator)`, `name`, `pool(...)` and `export(folder, note)`. The learning rate warms up, stays
constant and falls linearly over the last 30 % of the steps, so a run can be resumed with a larger `steps` as long as its decay has not begun.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.differentiable import with_backward

WARM_UP, DECAY = 100, 0.3
EMA = 0.998
SAVE_SECONDS = 240
BARE = (".to_q.weight", ".to_k.weight", "SelfAttention.q.weight", "SelfAttention.k.weight")


def times(count: int, shift: float, generator: torch.Generator, width: float = 1.2, shuffled: bool = True) -> Tensor:
    """Noise levels [count] in 0..1 for a flow model: logit-normal, one draw per equal-probability stratum, shifted as ModelSamplingSD3 does.

    Ascending unless `shuffled`.
    """
    strata = torch.randperm(count, generator=generator) if shuffled else torch.arange(count)
    share = (strata + torch.rand(count, generator=generator)) / count
    u = torch.sigmoid(width * 2**0.5 * torch.erfinv((2 * share - 1).clamp(-0.9999, 0.9999)))
    return shift * u / (1 + (shift - 1) * u)


def rate(step: int, steps: int) -> float:
    """Factor on the learning rates."""
    return min(1.0, (step + 1) / WARM_UP, max(0.02, (steps - step) / (DECAY * steps)))


def amp(device: torch.device) -> torch.autocast:
    """bfloat16 matrix products, as every task trains."""
    return torch.autocast(device.type, torch.bfloat16)


def orthogonal(name: str, p: Tensor) -> bool:
    """Whether Muon trains a parameter: matrices and kernels of the blocks.

    Not the queries and keys of U-Nets and text encoders, which no norm follows: Muon's steps have one size whatever the gradient, so they grow
    without end, and after a thousand steps every query sees one key for ever.
    """
    return "block" in name and p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 8 and "bias" not in name and not name.endswith(BARE)


class Trainer:
    """A task with its optimisers, running average and random state: everything that a resume file holds."""

    def __init__(self, task: nn.Module, seed: int, device: str = "cpu"):
        self.task, self.rates = task.to(device), task.rates
        muon, adam = self.rates
        self.live = [p for p in task.parameters() if p.requires_grad]
        matrix = {id(p) for name, p in task.named_parameters() if orthogonal(name, p)}
        self.matrices = [p for p in self.live if id(p) in matrix]
        self.others = [p for p in self.live if id(p) not in matrix]
        # Muon wants two axes; a kernel is seen as [out, in * window], in the same memory.
        self.views = [nn.Parameter(p.data.flatten(1)) for p in self.matrices]
        self.optimisers = [
            torch.optim.Muon(self.views, lr=muon, momentum=0.95, weight_decay=0.0),
            torch.optim.AdamW(self.others, lr=adam, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.average = [p.detach().clone() for p in self.live]
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.step, self.minutes = 0, 0.0

    def advance(self, pool: Any, steps: int) -> float:
        """One optimiser step; returns the loss."""
        for p in self.live:
            p.grad = None
        with with_backward():
            loss = self.task.loss(pool, self.step, steps, self.generator)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for view, p in zip(self.views, self.matrices, strict=True):
            view.grad = None if p.grad is None else p.grad.flatten(1)
        for optimiser, base in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * rate(self.step, steps)
            optimiser.step()
        self.step += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.live], 1 - min(EMA, (1 + self.step) / (10 + self.step)))
        return loss.item()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return dict(
            live=[p.detach() for p in self.live], average=self.average, optimisers=[o.state_dict() for o in self.optimisers],
            generator=self.generator.get_state(), step=self.step, minutes=self.minutes,
        )  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        with torch.no_grad():
            for p, value in zip(self.live, state["live"], strict=True):
                p.copy_(value)
            for kept, value in zip(self.average, state["average"], strict=True):
                kept.copy_(value)
        for optimiser, value in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(value)
        self.generator.set_state(state["generator"])
        self.step, self.minutes = state["step"], state["minutes"]

    def export(self, folder: Path, note: dict[str, Any]) -> None:
        """Write the task's files from the running average; the live weights are left as they are."""
        kept = [p.detach().clone() for p in self.live]
        with torch.no_grad():
            for p, value in zip(self.live, self.average, strict=True):
                p.copy_(value)
            self.task.export(folder, {**note, "step": self.step, "minutes": round(self.minutes, 1)})
            for p, value in zip(self.live, kept, strict=True):
                p.copy_(value)


def run(trainer: Trainer, pool: Any, steps: int, resume: Path, out: Path, note: dict[str, Any], stop_after: float | None = None) -> None:
    """Train until `steps` (or for `stop_after` minutes), saving every few minutes; continues from `resume` if that file exists."""
    if resume.exists():
        trainer.restore(torch.load(resume))
        print(f"resumed at step {trainer.step}", flush=True)
    start, before, saved, losses = time.time(), trainer.minutes, time.time(), []
    while trainer.step < steps:
        losses.append(trainer.advance(pool, steps))
        now = time.time()
        trainer.minutes = before + (now - start) / 60
        if trainer.step % 100 == 0:
            print(f"step {trainer.step} of {steps}: loss {sum(losses[-100:]) / len(losses[-100:]):.4f}, {trainer.minutes:.1f} min", flush=True)
        late = stop_after is not None and now - start > 60 * stop_after
        if now - saved > SAVE_SECONDS or trainer.step == steps or late:
            temporary = resume.with_suffix(".tmp")
            torch.save(trainer.state(), temporary)
            temporary.replace(resume)
            trainer.export(out, note)
            saved = time.time()
        if late:
            return
