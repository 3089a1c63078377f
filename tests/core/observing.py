"""Looking at every attention call of a run, in words."""

from dataclasses import dataclass, field

from attention_loom.core.attach import attach, record_of
from attention_loom.core.methods.base import Method
from tiny_models import sample as run

STEPS = 2
NOT_UNDERSTOOD = ("call not understood", "unreadable call")


@dataclass(frozen=True)
class Observer(Method):
    """Looks at every call and asks for nothing."""

    owner = "observer"
    seen: list = field(default_factory=list, compare=False)

    def contribute(self, call, draft):
        self.seen.append(call)


def words(layout):
    return " ".join(s.kind + ("x".join(map(str, s.grid)) if s.grid else str(s.length)) for s in layout.spans)


def sentence(call):
    keys = "" if call.k == call.q else f" | {words(call.k)}"
    return f"{call.block} {call.kind}: {words(call.q)}{keys}"


def understood(record):
    return [e for e in record.entries if e.kind in NOT_UNDERSTOOD] == []


def observe(model, patcher=None, **more):
    """(latent, calls, run) of a sampling run with an observer on the model."""
    observer = Observer()
    patched = attach(patcher or model.patcher, observer)
    out = run(patched, model, STEPS, **more)
    return out, observer.seen, record_of(patched).last
