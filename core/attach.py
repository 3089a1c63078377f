"""Methods onto a MODEL: the only file that touches one.

What is installed on a clone: one tuple of methods and one record in ``transformer_options``, one wrapper around sampling
(checks, opens and closes the run) and one around each model call. The attention override itself is composed at run time
over whatever override is there by then, so node order with other packs does not matter, and a pack that overwrites the
slot becomes our backend.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import latent, prefix
from .beside import SidePass
from .call import QUEUE, roles_of
from .errors import ConflictError, LoomError
from .extra_pass import guide
from .families import family_of
from .families.base import Family, RopeAxis, RopePlane, Unclear
from .guidance import EXTRA, ExtraPass
from .methods.base import Method
from .methods.extra import GuidanceMethod
from .methods.guided import LatentMethod
from .methods.referenced import ReferencedMethod
from .methods.sourced import SourcedMethod
from .relay import Handing, Stopped
from .report import Entry, Record, Run
from .side_call import with_references
from .source_call import with_source
from .woven import Woven

METHODS = "loom_methods"
RECORD = "loom_record"
KEY = "loom"
COMMON_WIDTHS = (64, 128)
BEGUN = 0.1
"""A run that starts within so much of the model's clock counts as a whole one: schedulers do not all begin at the very top."""
CLOCK_BITS = 40
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
    _one_with_references(method, kept)
    options[METHODS] = (*kept, method)
    options[RECORD] = Record()
    _install_wrappers(clone)
    return clone


def _one_with_references(method: Method, present: tuple[Method, ...]) -> None:
    """What one of them reads of its references would pass through the other."""
    other = next((m for m in present if isinstance(m, ReferencedMethod) and m.beside is not None), None)
    if other is not None and isinstance(method, ReferencedMethod) and method.beside is not None:
        raise LoomError(f"{method.owner} and {other.owner} both look at pictures of their own beside the sampling, and one model takes one of them; take one out.")


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
    run.noise, run.roles = noise, roles_of(guider.conds)
    failed = True
    try:
        _check(family, diffusion, noise, kwargs, methods, run, guider.conds)
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


def _check(family: Family, diffusion: Any, noise: Tensor, given: dict[str, Any], methods: tuple[Method, ...], run: Run, prompts: Any) -> None:
    """Every method looks at the latent and the prompts before the first step. given: what the host hands on beside the noise."""
    shapes = given.get("latent_shapes")  # of later hosts: video and sound come packed into one row
    try:
        geometry = replace(family.geometry(diffusion, noise, None, {"latent_shapes": shapes} if shapes else {}), batch=noise.shape[0])
    except (IndexError, Unclear) as error:
        raise LoomError(f"the latent has the shape {tuple(noise.shape)}, which {family.name} cannot take ({error}); connect a latent made for this model.") from error
    run.grid = run.whole = geometry.grid
    for method in methods:
        method.check_run(family, geometry, run.warn)
        method.check_company(methods, run.warn)
        method.check_prompts(prompts, noise.shape[0])
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
    """Methods that move the latent come before the model sees it; what extra passes take over from the main one is of this evaluation alone."""
    given = model_options or {}
    options = given.get("transformer_options", {})
    moving, record = _moving(options.get(METHODS, ())), options.get(RECORD)
    run = None if record is None else record.current
    if run is None:
        return executor(x, sigma, given, seed)
    prefix.forget(run)
    try:
        return latent.guide(executor, x, sigma, given, seed, moving, run) if moving else executor(x, sigma, given, seed)
    finally:
        prefix.forget(run)


def _calc_cond_batch(executor: Any, model: Any, conds: Any, x: Tensor, sigma: Tensor, model_options: dict[str, Any]) -> Any:
    """References that are sampled aside come before the scene, and so does the picture that is edited."""
    options = model_options.get("transformer_options", {})
    run = None if (record := options.get(RECORD)) is None else record.current
    aside = [m for m in options.get(METHODS, ()) if (isinstance(m, ReferencedMethod) and m.beside is not None) or (isinstance(m, SourcedMethod) and m.source is not None)]
    if not aside or run is None or isinstance(options.get(EXTRA), SidePass):
        return executor(model, conds, x, sigma, model_options)
    first, *others = aside
    if others:
        raise ConflictError(first.owner, others[0].owner, "each shows the model pictures of its own beside the sampler's", "Use one of them.")
    at = _progress(options, float(sigma.max()))
    if isinstance(first, SourcedMethod):
        return with_source(first, run, at, _steps(options), executor, model, conds, x, sigma, model_options)
    return with_references(first, run, at, executor, model, conds, x, sigma, model_options)


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
    sigma = _level(given) if "sigmas" in given else float(t.max())
    active = tuple(m for m in methods if m.window.contains(sigma, base.model_sampling.percent_to_sigma))
    family = family_of(base.diffusion_model)
    # a model called outside of sampling (a preview, a test) still gets a run, one that nobody keeps
    run = record.current or Run(family.name, tuple(m.owner for m in everyone if not m.reads), str(x.device))
    run.step(sigma)
    if pass_ is not None:
        pass_.begin(run)
    before = _prefix(base, everyone, given, x.shape[0], run, pass_)
    if not active:
        why = "outside every method's percent window" if methods else "the main pass stays as it is: guidance acts in an extra one"
        run.count(Entry("model call", False, "host", reason=why))
        if before is None:
            return executor(x, t, c_concat, c_crossattn, control, given, **extra)
        options = dict(given) | {prefix.PREFIX: before}
        family.mark(options, base.diffusion_model)
        return _model_call(executor, x, t, c_concat, c_crossattn, control, options, **extra)
    geometry = family.geometry(base.diffusion_model, x, c_crossattn, extra)
    run.grid = geometry.grid
    options = dict(given) if before is None else dict(given) | {prefix.PREFIX: before}
    family.mark(options, base.diffusion_model)
    options[OVERRIDE] = Woven(
        methods=active,
        family=family,
        diffusion=base.diffusion_model,
        geometry=geometry,
        run=run,
        sigma=sigma,
        progress=_progress(given, sigma),
        steps=_steps(given),
        done=_done(given, base.model_sampling, sigma),
        rope=_rope(family, base.diffusion_model, extra, run),
        plane=_plane(family, base.diffusion_model, given, run),
        previous=given.get(OVERRIDE),
        replaced=_replaced(given),
        extra=pass_,
    ).override
    return _model_call(executor, x, t, c_concat, c_crossattn, control, options, **extra)


def _model_call(executor: Any, x: Tensor, *args: Any, **extra: Any) -> Tensor:
    """What the host makes of it; of a call that was only to reach a block, nothing."""
    try:
        return executor(x, *args, **extra)  # type: ignore[no-any-return]
    except Stopped:
        return torch.zeros_like(x)


def _prefix(base: Any, methods: tuple[Method, ...], options: dict[str, Any], batch: int, run: Run, pass_: ExtraPass | None) -> prefix.Prefix | Handing | None:
    """What this model call keeps for the extra passes behind it, or takes over from the main one or those before it."""
    if pass_ is not None and pass_.relay is not None:
        return pass_.relay.at(options, batch, pass_)
    guiding = [m for m in methods if isinstance(m, GuidanceMethod) and m.reuse]
    if not guiding:
        return None
    ends = run.kept("prefix ends", lambda: prefix.ends(guiding, family_of(base.diffusion_model).blocks(base.diffusion_model)))
    axis = family_of(base.diffusion_model).batch_axis(base.diffusion_model)
    return prefix.Prefix(run, options, batch, ends, pass_, axis) if ends else None


def _level(options: dict[str, Any]) -> float:
    """The noise level of a model call; of a window of an endless clip, whose frames may be batch rows with levels of their own, the median."""
    sigmas = options["sigmas"]
    return float(sigmas.median() if QUEUE in options else sigmas.max())


def _progress(options: dict[str, Any], sigma: float) -> float:
    """Place of this noise level in the schedule, 0 to 1, interpolated: samplers may evaluate between steps."""
    sigmas = options.get("sample_sigmas")
    if sigmas is None or len(sigmas) < 2:
        return 0.0
    levels = sigmas.detach().double().cpu().flip(0)
    at = int(torch.searchsorted(levels, torch.tensor(sigma, dtype=torch.float64)).clamp(1, len(levels) - 1))
    low, high = float(levels[at - 1]), float(levels[at])
    part = 0.0 if high == low else (sigma - low) / (high - low)
    # rounded, so that step 2 of 10 lies at 0.2 and not a bit below
    return round(min(1.0, max(0.0, 1.0 - (at - 1 + part) / (len(levels) - 1))), 9)


def _done(options: dict[str, Any], sampling: Any, sigma: float) -> float | None:
    """Place of this noise level in the whole schedule, by the model's clock, where this run is a part of one; else None."""
    sigmas = options.get("sample_sigmas")
    if sigmas is None or len(sigmas) < 2 or (float(sigmas[0]) >= float(sampling.percent_to_sigma(BEGUN)) and float(sigmas[-1]) == 0):
        return None
    low, high = 0.0, 1.0
    for _ in range(CLOCK_BITS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) > sigma else (low, middle)
    return high


def _steps(options: dict[str, Any]) -> int:
    """Steps of this run, 0 where the host does not say."""
    sigmas = options.get("sample_sigmas")
    return 0 if sigmas is None else max(0, len(sigmas) - 1)


def _replaced(options: dict[str, Any]) -> tuple[str, ...]:
    """Names of the blocks and attentions other nodes replace in this model call, before we mark ours, and of an extra pass."""
    own = [f"pass/{options[EXTRA].name}"] if EXTRA in options else []
    return tuple(sorted([f"{kind}/{where}" for kind, slots in options.get("patches_replace", {}).items() for where in slots] + own))


def _rope(family: Family, diffusion: Any, extra: dict[str, Any], run: Run) -> RopeAxis | None:
    """The temporal axis, built once per run and what it may depend on."""
    key = ("rope", *(str(extra.get(name)) for name in ("frame_rate", "fps", "ref_mask_flag")))
    if key not in run.state:
        run.state[key] = family.rope(diffusion, extra)
    return run.state[key]


def _plane(family: Family, diffusion: Any, options: dict[str, Any], run: Run) -> RopePlane | None:
    """The rotary axes of the picture plane, built once per run and stretch."""
    return run.kept(("plane", str(options.get("rope_options"))), lambda: family.plane(diffusion, options))
