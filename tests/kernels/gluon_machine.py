"""A machine that runs kernels written in Gluon on the CPU, one step of one warp group at a time, in an order drawn by a seed.

Triton's interpreter does not know the dialect. This one does what a Hopper multiprocessor may do at worst: whatever is not waited
for happens at any time. A copy of the copy engine arrives late, its place holds NaN from the moment it was ordered; a product that was
begun reads its operands at once or only when it is waited for. A kernel that forgets a barrier gives NaN or wrong numbers for some
seed, one that waits for what never comes is reported as a deadlock. Layouts, banks and registers are the compiler's to check
(``tools/aot.py``).
"""

from __future__ import annotations
import __future__

import ast
import inspect
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Deadlock(AssertionError):
    """No warp group can go on and no copy is under way."""


@dataclass
class Pointer:
    """Elements of a flat tensor, as a kernel addresses them."""

    flat: Tensor
    at: Any

    @classmethod
    def to(cls, x: Tensor) -> Pointer:
        """The first element of x."""
        flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        return cls(flat, torch.tensor(x.storage_offset()))

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.flat, self.at + offset)

    @property
    def dtype(self) -> Any:
        return SimpleNamespace(element_ty=self.flat.dtype)

    def places(self, mask: Any) -> tuple[Tensor, Tensor]:
        at, mask = torch.broadcast_tensors(torch.as_tensor(self.at).long(), torch.as_tensor(True if mask is None else mask))
        assert bool(((at >= 0) & (at < self.flat.numel()))[mask].all()), "a kernel reads or writes beside its tensor"
        return torch.where(mask, at, 0), mask


class Descriptor:
    """What the copy engine reads: boxes of a strided tensor, zeros beside it."""

    def __init__(self, made: Any):
        self.tensor = torch.as_strided(made.base, made.shape, made.strides)
        self.box, self.layout, self.dtype = made.block_shape, made.layout, made.base.dtype
        self.block_type = SimpleNamespace(nbytes=made.base.element_size() * torch.Size(self.box).numel())

    def read(self, corner: Iterable[Any]) -> Tensor:
        out = torch.zeros(self.box, dtype=self.dtype)
        there = [(int(c), min(int(c) + b, n)) for c, b, n in zip(corner, self.box, self.tensor.shape, strict=True)]
        if all(a < b for a, b in there):
            out[tuple(slice(0, b - a) for a, b in there)] = self.tensor[tuple(slice(a, b) for a, b in there)]
        return out


@dataclass
class Shared:
    """A view of shared memory. unfenced: warp groups that have stored and not yet fenced, by storage."""

    data: Tensor
    machine: Machine

    def index(self, i: Any) -> Shared:
        return Shared(self.data[int(i)], self.machine)

    def reshape(self, shape: list[int]) -> Shared:
        return Shared(self.data.view(shape), self.machine)

    def permute(self, order: list[int]) -> Shared:
        return Shared(self.data.permute(order), self.machine)

    def store(self, value: Tensor) -> None:
        self.machine.point()
        self.data.copy_(value)
        self.machine.unfenced.add((self.machine.task, self.data.untyped_storage().data_ptr()))

    def operand(self) -> Tensor:
        seen = (self.machine.task, self.data.untyped_storage().data_ptr())
        assert seen not in self.machine.unfenced, "a product reads what was stored without a fence"
        return self.data.float()


@dataclass
class Barrier:
    """arrivals: of one round; missing and bytes: what this round still waits for; rounds: how many are complete."""

    arrivals: int
    missing: int = 0
    bytes: int = 0
    rounds: int = 0

    def __post_init__(self):
        self.missing = self.arrivals

    def settle(self) -> None:
        assert self.missing >= 0, "more arrivals at a barrier than it counts"
        if self.missing == 0 and self.bytes == 0:
            self.rounds, self.missing = self.rounds + 1, self.arrivals


@dataclass
class Going:
    """A product that was begun."""

    compute: Callable[[], Tensor]
    value: Tensor | None = None

    def finish(self) -> Tensor:
        if self.value is None:
            self.value = self.compute()
        return self.value


@dataclass
class _Task:
    run: Callable[[], None]
    ready: Callable[[], bool] | None = None
    turn: threading.Event = field(default_factory=threading.Event)
    going: list[Going] = field(default_factory=list)
    over: bool = False


class Machine:
    """One multiprocessor; programs run on it one after the other."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.program, self.programs, self.steps = 0, 1, 0
        self._clear()

    def _clear(self) -> None:
        self.barriers: dict[int, Barrier] = {}
        self.copies: list[Callable[[], None]] = []
        self.unfenced: set[tuple[int, int]] = set()
        self.memory: list[Tensor] = []
        self.tasks: list[_Task] = [_Task(lambda: None)]
        self.task, self.failure = 0, None
        self._back = threading.Event()

    def start(self, kernel: Callable[[], None], program: int, programs: int) -> None:
        """Run one program to its end."""
        self._clear()
        self.program, self.programs = program, programs
        kernel()
        assert not self.copies, "a program ends with copies under way"

    # --- warp groups --------------------------------------------------------------------------------------------------

    def specialise(self, functions: list[tuple[Callable, tuple]], warps: list[int], registers: list[int]) -> None:
        """All roles at once, until each is done."""
        assert len(functions) == len(warps) + 1 == len(registers) + 1
        self.tasks = [_Task(lambda f=f, a=a: f(*a)) for f, a in functions]  # type: ignore[misc]
        threads = [threading.Thread(target=self._live, args=(n,), daemon=True) for n in range(len(self.tasks))]
        for t in threads:
            t.start()
        while True:
            able = [n for n, t in enumerate(self.tasks) if not t.over and (t.ready is None or t.ready())]
            choices: list[Any] = [*able, *self.copies]
            if self.failure or not choices:
                break
            chosen = self.random.choice(choices)
            if not isinstance(chosen, int):
                self.copies.remove(chosen)
                chosen()
                continue
            self._hand_over(chosen)
        stuck = [n for n, t in enumerate(self.tasks) if not t.over]
        if stuck and self.failure is None:
            self.failure = Deadlock(f"warp groups {stuck} wait for what never comes")
        for n in stuck:  # each ends at its next point
            self._hand_over(n)
        for t in threads:
            t.join()
        if self.failure:
            raise self.failure

    def _hand_over(self, n: int) -> None:
        self.task, self.steps = n, self.steps + 1
        self._back.clear()
        self.tasks[n].turn.set()
        self._back.wait()

    def _live(self, n: int) -> None:
        task = self.tasks[n]
        task.turn.wait()
        try:
            if not self.failure:
                task.run()
                assert not task.going, "a warp group ends with products it has not waited for"
        except BaseException as error:  # handed on to the caller of the kernel
            self.failure = self.failure or error
        task.over = True
        self._back.set()

    def point(self, ready: Callable[[], bool] | None = None) -> None:
        """Something else may happen here; with ``ready``, until it holds."""
        if len(self.tasks) == 1:
            return
        task = self.tasks[self.task]
        task.ready = ready
        task.turn.clear()
        self._back.set()
        task.turn.wait()
        task.ready = None
        if self.failure:
            raise self.failure

    # --- what kernels call --------------------------------------------------------------------------------------------

    def allocate(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Shared:
        self.memory.append(torch.zeros(shape, dtype=dtype) if not dtype.is_floating_point else torch.full(shape, float("nan"), dtype=dtype))
        return Shared(self.memory[-1], self)

    def init(self, barrier: Shared, count: int) -> None:
        self.barriers[barrier.data.data_ptr()] = Barrier(count)

    def wait(self, barrier: Shared, phase: Any) -> None:
        b, parity = self.barriers[barrier.data.data_ptr()], int(phase)
        # The round of this parity is over: the one under way has the other one.
        self.point(lambda: b.rounds % 2 != parity)

    def expect(self, barrier: Shared, nbytes: int) -> None:
        self.point()
        b = self.barriers[barrier.data.data_ptr()]
        b.missing, b.bytes = b.missing - 1, b.bytes + nbytes
        b.settle()

    def arrive(self, barrier: Shared, *, count: int = 1) -> None:
        self.point()
        b = self.barriers[barrier.data.data_ptr()]
        b.missing -= count
        b.settle()

    def copy(self, source: Descriptor, corner: list[Any], barrier: Shared, target: Shared) -> None:
        self.point()
        target.data.fill_(float("nan"))
        b = self.barriers[barrier.data.data_ptr()]

        def arrives() -> None:
            target.data.copy_(source.read(corner))
            b.bytes -= source.block_type.nbytes
            b.settle()

        self.copies.append(arrives)

    def fence(self) -> None:
        self.unfenced = {x for x in self.unfenced if x[0] != self.task}

    def multiply(self, a: Any, b: Shared, acc: Any, *, use_acc: bool = True, is_async: bool = False) -> Any:
        self.point()

        def compute() -> Tensor:
            left = a.operand() if isinstance(a, Shared) else a.float()
            product = left @ b.operand()
            return acc + product if use_acc else product

        one = Going(compute)
        if not is_async:
            return one.finish()
        if self.random.random() < 0.5:
            one.finish()
        self.tasks[self.task].going.append(one)
        return one

    def finish(self, left: int, deps: list[Any]) -> Any:
        self.point()
        going = self.tasks[self.task].going
        while len(going) > left:
            going.pop(0).finish()
        values = [d.value if isinstance(d, Going) and d not in going else d for d in deps]
        return values[0] if len(values) == 1 else tuple(values)


def _load(p: Pointer, mask: Any = None, other: Any = 0) -> Tensor:
    at, mask = p.places(mask)
    found = p.flat[at]
    return torch.where(mask, found, torch.as_tensor(other, dtype=found.dtype))


def _store(p: Pointer, value: Any, mask: Any = None) -> None:
    at, mask = p.places(mask)
    p.flat[at[mask]] = torch.as_tensor(value, dtype=p.flat.dtype).expand(mask.shape)[mask]


def _binary(f: Callable) -> Callable:
    return lambda a, b: f(torch.as_tensor(a), torch.as_tensor(b))


def _language(machine: Machine) -> Any:
    """Stands for both ``triton.language`` and Gluon's."""

    def unknown(*args: Any, **kwargs: Any) -> None:
        return None

    layout = SimpleNamespace(get_default_for=unknown)
    return SimpleNamespace(
        constexpr=lambda x: x, static_range=range, int32=torch.int32, int64=torch.int64, float32=torch.float32,
        program_id=lambda axis: torch.tensor(machine.program), num_programs=lambda axis: machine.programs,
        arange=lambda a, b, layout=None: torch.arange(a, b), full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype),
        load=_load, store=_store, where=torch.where, maximum=_binary(torch.maximum), minimum=_binary(torch.minimum),
        abs=torch.abs, cast=lambda x, dtype: torch.as_tensor(x).to(dtype), zeros=lambda shape, dtype: torch.zeros(shape, dtype=dtype),
        max=lambda x, axis: x.amax(axis), sum=lambda x, axis: x.sum(axis), exp2=torch.exp2, log2=torch.log2,
        math=SimpleNamespace(exp2=torch.exp2, log2=torch.log2), convert_layout=lambda x, layout: x,
        allocate_shared_memory=machine.allocate, warp_specialize=machine.specialise,
        NVMMASharedLayout=layout, NVMMADistributedLayout=unknown, DotOperandLayout=unknown, BlockedLayout=unknown, SliceLayout=unknown,
    )  # fmt: skip


def _jit(function: Any = None, **options: Any) -> Any:
    return function if function is not None else lambda f: f


class Kernel:
    """A kernel and the device code it calls, read from source files and run on a machine; launched as Triton launches one."""

    def __init__(self, name: str, sources: list[Path], seed: int = 0, change: Callable[[str], str] = lambda text: text):
        self.machine = Machine(seed)
        language = _language(self.machine)
        space: dict[str, Any] = {
            "triton": SimpleNamespace(jit=_jit), "gluon": SimpleNamespace(jit=_jit), "tl": language, "gl": language,
            "range": lambda *ends: (torch.tensor(i) for i in range(*(int(e) for e in ends))),
            "mbarrier": SimpleNamespace(init=self.machine.init, wait=self.machine.wait, expect=self.machine.expect, arrive=self.machine.arrive, MBarrierLayout=lambda: None),
            "tma": SimpleNamespace(async_copy_global_to_shared=self.machine.copy), "fence_async_shared": self.machine.fence,
            "warpgroup_mma": self.machine.multiply, "warpgroup_mma_wait": self.machine.finish,
        }  # fmt: skip
        for source in sources:
            tree = ast.parse(change(source.read_text(encoding="utf8")))
            tree.body = [n for n in tree.body if not isinstance(n, ast.Import | ast.ImportFrom)]
            exec(compile(tree, str(source), "exec", flags=__future__.annotations.compiler_flag), space)  # noqa: S102 -- our own sources
        self.function = space[name]
        self.arg_names = list(inspect.signature(self.function).parameters)
        self.grids: list[int] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, **kwargs: Any) -> None:
            self.grids.append(grid[0])
            given = dict(zip(self.arg_names, args, strict=False)) | kwargs
            assert set(given) == set(self.arg_names), set(given) ^ set(self.arg_names)
            made = {name: _argument(x) for name, x in given.items()}
            for program in range(grid[0]):
                self.machine.start(lambda: self.function(**made), program, grid[0])

        return launch


def _argument(x: Any) -> Any:
    if isinstance(x, Tensor):
        return Pointer.to(x)
    return Descriptor(x) if hasattr(x, "block_shape") else x
