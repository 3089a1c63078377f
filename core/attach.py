"""Methods onto a MODEL: the only file that touches one.

What is installed on a clone: one tuple of methods and one record in ``transformer_options``, one wrapper around sampling
(checks, opens and closes the run) and one around each model call. The attention override itself is composed at run time
over whatever override is there by then, so node order with other packs does not matter, and a pack that overwrites the
slot becomes our backend.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..kernels import Trace, attend
from . import latent, signature
from .beside import SidePass
from .call import QUEUE, AttentionCall, Block, Seen
from .errors import LoomError
from .extra_pass import guide
from .families import family_of
from .families.base import Family, Laid, Mark, Place, RopeAxis, RopePlane, Unclear, running
from .guidance import EXTRA, ExtraPass
from .methods.base import Method
from .methods.extra import GuidanceMethod
from .methods.guided import LatentMethod
from .methods.ir_diffusion import IRDiffusion
from .parted import parted
from .report import Entry, Record, Run
from .side_call import with_references
from .weave import Draft, weave

METHODS = "loom_methods"
RECORD = "loom_record"
KEY = "loom"
COMMON_WIDTHS = (64, 128)
"""Head widths of nearly all models large enough to matter."""
OVERRIDE = "optimized_attention_override"

log = logging.getLogger(__name__)


def attach(model: Any, method: Method) -> Any:
    """A clone of ``model`` (a host ModelPatcher) on which ``method`` acts.

    Off settings give a plain clone, bit-identical in use. Raises UnsupportedModel or the method's own LoomError.
    """
    clone = model.clone()
    if method.off:
        return clone
    diffusion = clone.get_model_object("diffusion_model")
    family = family_of(diffusion)
    method.check_family(family, diffusion)

    options = clone.model_options["transformer_options"] = dict(clone.model_options.get("transformer_options", {}))
    present: tuple[Method, ...] = options.get(METHODS, ())
    if not present:
        family.install(clone)
    if isinstance(method, GuidanceMethod):
        method = method.numbered(sum(isinstance(m, GuidanceMethod) for m in present))
        clone.set_model_sampler_post_cfg_function(guide(method))
    kept = tuple(m for m in present if not (method.unique and type(m) is type(method)))
    options[METHODS] = (*kept, method)
    options[RECORD] = Record()
    _install_wrappers(clone)
    return clone


def methods_of(model: Any) -> tuple[Method, ...]:
    """The methods attached to a MODEL."""
    return model.model_options.get("transformer_options", {}).get(METHODS, ())


def record_of(model: Any) -> Record | None:
    """The record of a MODEL, or None if no Loom node is on it."""
    return model.model_options.get("transformer_options", {}).get(RECORD)


def _install_wrappers(clone: Any) -> None:
    import comfy.patcher_extension as extension

    kinds = extension.WrappersMP
    for kind, wrapper in ((kinds.OUTER_SAMPLE, _outer_sample), (kinds.PREDICT_NOISE, _predict_noise), (kinds.CALC_COND_BATCH, _calc_cond_batch), (kinds.APPLY_MODEL, _apply_model)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)


# --- one sampling run -----------------------------------------------------------------------------------------------


def _outer_sample(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Checks before the first step; opens the run and closes it, whatever happens."""
    guider = executor.class_obj
    options = guider.model_options.get("transformer_options", {})
    methods, record = options.get(METHODS, ()), options.get(RECORD)
    if not methods or record is None:
        return executor(noise, *args, **kwargs)
    patcher = guider.model_patcher
    diffusion = patcher.get_model_object("diffusion_model")
    family = family_of(diffusion)
    run = record.begin(family.name, tuple(m.owner for m in methods if not m.reads), str(patcher.load_device))
    failed = True
    try:
        _check(family, diffusion, noise, methods, run)
        _measure_launches(patcher, run)
        moving = _moving(methods)
        if moving:
            args = latent.prepare(moving, guider, family, diffusion, run, args)
        result = latent.finish(moving, executor(noise, *args, **kwargs), run)
        failed = False
        return result
    finally:
        record.end(failed)
        if not failed:
            for owner, n in run.touched.items():
                if n == 0:
                    log.warning("%s changed nothing in this run%s", owner, "".join(f"; {r}" for r in run.reasons_against(owner)[:3]))


def _check(family: Family, diffusion: Any, noise: Tensor, methods: tuple[Method, ...], run: Run) -> None:
    """Every method looks at the latent before the first step."""
    try:
        geometry = replace(family.geometry(diffusion, noise, None, {}), batch=noise.shape[0])
    except (IndexError, Unclear) as error:
        raise LoomError(f"the latent has the shape {tuple(noise.shape)}, which {family.name} cannot take ({error}); connect a latent made for this model.") from error
    run.grid = run.whole = geometry.grid
    for method in methods:
        method.check_run(family, geometry, run.warn)
    for sentence in run.warnings:
        log.warning(sentence)


def _measure_launches(patcher: Any, run: Run) -> None:
    """Before the first step on a GPU that no shipped launch setting knows: a few seconds, once in the life of a machine."""
    if not run.device.startswith("cuda"):
        return
    from ..kernels.triton.candidates import measure_missing

    dtype = getattr(patcher.model, "manual_cast_dtype", None) or patcher.model.get_dtype()
    for width in COMMON_WIDTHS:
        try:
            measure_missing(width, dtype, torch.device(run.device))
        except (RuntimeError, ValueError) as error:
            run.warn(f"launch settings for this GPU could not be measured ({str(error).splitlines()[0]}); a careful guess is used")


# --- one evaluation of the sampler ----------------------------------------------------------------------------------


def _moving(methods: tuple[Method, ...]) -> tuple[LatentMethod, ...]:
    return tuple(m for m in methods if isinstance(m, LatentMethod))


def _predict_noise(executor: Any, x: Tensor, sigma: Tensor, model_options: dict[str, Any] | None = None, seed: Any = None) -> Tensor:
    """Methods that move the latent come before the model sees it."""
    given = model_options or {}
    options = given.get("transformer_options", {})
    moving, record = _moving(options.get(METHODS, ())), options.get(RECORD)
    if not moving or record is None or record.current is None:
        return executor(x, sigma, given, seed)
    return latent.guide(executor, x, sigma, given, seed, moving, record.current)


def _calc_cond_batch(executor: Any, model: Any, conds: Any, x: Tensor, sigma: Tensor, model_options: dict[str, Any]) -> Any:
    """References that are sampled aside come before the scene."""
    options = model_options.get("transformer_options", {})
    method = next((m for m in options.get(METHODS, ()) if isinstance(m, IRDiffusion) and m.beside is not None), None)
    run = None if (record := options.get(RECORD)) is None else record.current
    if method is None or run is None or isinstance(options.get(EXTRA), SidePass):
        return executor(model, conds, x, sigma, model_options)
    return with_references(method, run, _progress(options, float(sigma.max())), executor, model, conds, x, sigma, model_options)


# --- one model call -------------------------------------------------------------------------------------------------


def _apply_model(
    executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None, transformer_options: dict[str, Any] | None = None, **extra: Any
) -> Tensor:
    """Puts our override over the one that is there now; leaves the model call alone if no method acts at this sigma."""
    given = transformer_options or {}
    everyone: tuple[Method, ...] = given.get(METHODS, ())
    record: Record | None = given.get(RECORD)
    if not everyone or record is None:
        return executor(x, t, c_concat, c_crossattn, control, given, **extra)
    pass_: ExtraPass | None = given.get(EXTRA)
    methods = tuple(m for m in everyone if m.only_in is None or (pass_ is not None and m.only_in == pass_.name))
    base = executor.class_obj
    sigma = float(given["sigmas"].max()) if "sigmas" in given else float(t.max())
    active = tuple(m for m in methods if m.window.contains(sigma, base.model_sampling.percent_to_sigma))
    family = family_of(base.diffusion_model)
    # a model called outside of sampling (a preview, a test) still gets a run, one that nobody keeps
    run = record.current or Run(family.name, tuple(m.owner for m in everyone if not m.reads), str(x.device))
    run.step(sigma)
    if pass_ is not None:
        pass_.begin(run)
    if not active:
        why = "outside every method's percent window" if methods else "the main pass stays as it is: guidance acts in an extra one"
        run.count(Entry("model call", False, "host", reason=why))
        return executor(x, t, c_concat, c_crossattn, control, given, **extra)
    geometry = family.geometry(base.diffusion_model, x, c_crossattn, extra)
    run.grid = geometry.grid
    options = dict(given)
    family.mark(options, base.diffusion_model)
    options[OVERRIDE] = _Woven(
        active,
        family,
        geometry,
        run,
        sigma,
        _progress(given, sigma),
        _steps(given),
        _rope(family, base.diffusion_model, extra, run),
        _plane(family, base.diffusion_model, given, run),
        given.get(OVERRIDE),
        _replaced(given),
        pass_,
        base.diffusion_model,
    ).override
    return executor(x, t, c_concat, c_crossattn, control, options, **extra)


def _progress(options: dict[str, Any], sigma: float) -> float:
    """Place of this noise level in the schedule, 0 to 1, interpolated: samplers may evaluate between steps."""
    sigmas = options.get("sample_sigmas")
    if sigmas is None or len(sigmas) < 2:
        return 0.0
    levels = sigmas.detach().double().cpu().flip(0)
    at = int(torch.searchsorted(levels, torch.tensor(sigma, dtype=torch.float64)).clamp(1, len(levels) - 1))
    low, high = float(levels[at - 1]), float(levels[at])
    part = 0.0 if high == low else (sigma - low) / (high - low)
    return float(min(1.0, max(0.0, 1.0 - (at - 1 + part) / (len(levels) - 1))))


def _steps(options: dict[str, Any]) -> int:
    """Steps of this run, 0 where the host does not say."""
    sigmas = options.get("sample_sigmas")
    return 0 if sigmas is None else max(0, len(sigmas) - 1)


def _replaced(options: dict[str, Any]) -> tuple[str, ...]:
    """Names of the blocks and attentions other nodes replace in this model call, before we mark ours, and of an extra pass."""
    own = [f"pass/{options[EXTRA].name}"] if EXTRA in options else []
    return tuple(sorted([f"{kind}/{where}" for kind, slots in options.get("patches_replace", {}).items() for where in slots] + own))


def _rope(family: Family, diffusion: Any, extra: dict[str, Any], run: Run) -> RopeAxis | None:
    """The temporal axis, built once per run and frame rate."""
    key = ("rope", str(extra.get("frame_rate")), str(extra.get("fps")))
    if key not in run.state:
        run.state[key] = family.rope(diffusion, extra)
    return run.state[key]


def _plane(family: Family, diffusion: Any, options: dict[str, Any], run: Run) -> RopePlane | None:
    """The rotary axes of the picture plane, built once per run and stretch."""
    return run.kept(("plane", str(options.get("rope_options"))), lambda: family.plane(diffusion, options))


class _Woven:
    """The override of one model call."""

    def __init__(
        self,
        methods: tuple[Method, ...],
        family: Family,
        geometry: Laid,
        run: Run,
        sigma: float,
        progress: float,
        steps: int,
        rope: RopeAxis | None,
        plane: RopePlane | None,
        previous: Callable[..., Tensor] | None,
        replaced: tuple[str, ...] = (),
        extra: ExtraPass | None = None,
        diffusion: Any = None,
    ) -> None:
        self.methods, self.family, self.geometry, self.run = methods, family, geometry, run
        self.sigma, self.progress, self.steps, self.rope, self.plane, self.previous = sigma, progress, steps, rope, plane, previous
        self.replaced, self.extra, self.diffusion = replaced, extra, diffusion
        self.turns: Counter[tuple[Block, str]] = Counter()

    def override(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The host calls this instead of its attention."""
        try:
            sig = signature.read(func, *args, **kwargs)
        except TypeError as error:
            self.run.count(Entry("unreadable call", False, "host", reason=str(error)))
            return func(*args, **kwargs) if self.previous is None else self.previous(func, *args, **kwargs)
        mark = running(sig.options)
        methods = self.methods
        try:
            call = self._call(sig, self._place(sig))
        except Unclear as error:
            self._insist(mark, error)
            methods = tuple(m for m in methods if m.counts_tokens)
            place = self.family.merged(sig.options, sig.q.shape[2], sig.k.shape[2]) if methods else None
            if place is None:
                self.run.count(Entry("call not understood", False, self._host, reason=str(error)))
                return sig.stock(self.previous)
            call = self._call(sig, place)
        finally:
            if mark is not None:
                mark.calls += 1
        draft = weave(methods, call, lambda method: True)
        out = self._execute(sig, call, draft)
        for owner, reader in draft.readers if self.extra is None else ():  # what is read is the attention of the main pass
            reader(call.seen)  # type: ignore[arg-type]
            self.run.read(owner)
        for owner, tap in draft.taps:
            out = out + sig.give(tap(call.seen)).to(out.dtype)  # type: ignore[arg-type]
            self.run.read(owner)
        return out

    def _insist(self, mark: Mark | None, error: Unclear) -> None:
        """Outside the blocks (refiners, embedders) an unknown call is nobody's business; inside it may not pass silently."""
        strict = [m.owner for m in self.methods if m.needs_grid and (mark is None or mark.block in m.blocks)]
        if mark is not None and strict:
            raise LoomError(
                f"{strict[0]} cannot tell the video tokens of {mark.block} apart: {error}. A node that packs, tiles or concatenates latents probably "
                "changed the token layout; take it out, or take this method out."
            ) from error

    @property
    def _host(self) -> str:
        return "host" if self.previous is None else "host, through another pack's override"

    def _place(self, sig: signature.Signature) -> Place:
        place = self.family.place(sig.options, self.geometry, sig.q.shape[2], sig.k.shape[2])
        for side, layout, n in (("queries", place.q, sig.q.shape[2]), ("keys", place.k, sig.k.shape[2])):
            if layout.length != n:
                raise Unclear(f"{place.block} {place.kind}: {n} {side}, but the tokens known make {layout.length}")
        return place

    def _call(self, sig: signature.Signature, place: Place) -> AttentionCall:
        window = sig.options.get("context_window")
        turn = self.turns[place.block, place.kind]
        self.turns[place.block, place.kind] += 1
        return AttentionCall(
            family=self.family.name,
            block=place.block,
            kind=place.kind,
            heads=sig.heads,
            width=sig.q.shape[3],
            q=place.q,
            k=place.k,
            sigma=self.sigma,
            progress=self.progress,
            rows=tuple(sig.options.get("cond_or_uncond", ())),
            batch=sig.q.shape[0],
            device=sig.q.device,
            dtype=sig.q.dtype,
            frames=None if window is None else tuple(window.index_list),
            uuids=tuple(sig.options.get("uuids", ())),
            rope=self.rope,
            plane=self.plane,
            steps=self.steps,
            turn=turn,
            replaced=self.replaced,
            run=self.run,
            extra=self.extra,
            project=self.family.text_reader(self.diffusion, place.block, turn) if place.kind == "cross" else None,
            seen=Seen(sig.q, sig.k, sig.v, sig.mask, sig.scale, sig.dense(self.previous)),
            queue=sig.options.get(QUEUE),
        )

    def _execute(self, sig: signature.Signature, call: AttentionCall, draft: Draft) -> Tensor:
        if draft.parts:
            return self._parted(sig, draft)
        plan = draft.plan()
        if plan.empty:
            self.run.count(Entry(call.kind, False, self._host, reason="; ".join(draft.reasons)), call)
            return sig.stock(self.previous)
        try:
            bias = sig.key_bias()
        except ValueError as error:
            self.run.warn(f"{', '.join(draft.owners)} left calls alone: {error}")
            self.run.count(Entry(call.kind, False, self._host, reason=str(error)), call)
            return sig.stock(self.previous)
        parts, alone = tuple(sorted(plan.features)), plan.without("blocks").empty
        owners, backend = draft.owners, draft.backend()
        if bias is not None:
            draft.bias("the prompt's padding mask", bias)
            plan = draft.plan()
        trace, dense, race = Trace(), sig.dense(self.previous), draft.race

        def work() -> Any:
            trace.declined.clear()
            return attend(sig.q, sig.k, sig.v, plan, scale=sig.scale, backend=backend, dense=dense, trace=trace)

        def without_sparse() -> Any:
            """What this call would be if it stayed dense: stock, or what the other methods make of it."""
            if alone:
                return sig.stock(self.previous)
            return attend(sig.q, sig.k, sig.v, plan.without("blocks"), scale=sig.scale, backend=backend, dense=dense)

        out = self.run.timed(work if race is None or plan.blocks is None else lambda: race.run(work, without_sparse))
        declined = "; ".join(dict.fromkeys([*draft.reasons, *(f"{name}: {why}" for name, why in trace.declined)]))
        self.run.count(Entry(call.kind, True, self._host if trace.backend == "host" else trace.backend, owners, parts, declined), call)
        return sig.give(out)

    def _parted(self, sig: signature.Signature, draft: Draft) -> Tensor:
        """Each part of the batch by its own plan."""
        out: Tensor | None = None
        for elements, part in parted(draft):
            made = self._execute(sig.only(elements), part.call, part)
            out = made.new_empty(sig.q.shape[0], *made.shape[1:]) if out is None else out
            out[list(elements)] = made
        assert out is not None
        return out
