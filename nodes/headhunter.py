"""Nodes: Find Guidance Heads (HeadHunter), Picture Scorer, Load Heads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..core.errors import LoomError
from ..core.guidance import Guidance
from ..core.heads import HeadSet
from ..core.hunt.bench import Bench, Sampling, fitting, with_prompts
from ..core.hunt.run import Session, read
from ..core.hunt.scorers import LIKENESS, LOOM_SCORER, MEASURES, Joined, Likeness, Measured, PromptAttention, Scorer, as_scorer
from ..core.hunt.search import Plan
from ..core.hunt.sheet import draw
from ..core.methods.softpag import LOOM_HEADS, ROWS, TARGETS, SoftPAG
from . import common

GOALS = (*MEASURES, "prompt attention")
IF_LONGER = ("refuse with the estimate", "search as far as it gets")
JOIN = ("sum", "harmonic mean")
PREVIEW = 1240
NAME = re.compile(r"[\w][\w .-]*")

Heads, Scorers = io.Custom(LOOM_HEADS), io.Custom(LOOM_SCORER)


class LoomHeadHunter(io.ComfyNode):
    """Runs :class:`core.hunt.run.Session`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        import comfy.samplers

        return io.Schema(
            node_id="LoomHeadHunter",
            display_name="Find Guidance Heads (HeadHunter)",
            category=common.category("guidance"),
            description=(
                "Searches your own model for the attention heads whose weakening serves a goal: draws small pictures with each head weakened, scores them, and "
                "keeps the best. Estimates the time before it starts, shows what it finds, and goes on where it was interrupted. (arXiv 2506.10978)"
            ),
            inputs=[
                common.model_input(),
                io.Conditioning.Input("positive", tooltip="The prompt to search with. With 'prompts' below it only lends its settings (guidance, ControlNet, areas)."),
                io.Vae.Input("vae", tooltip="Decodes the pictures that are scored."),
                io.Latent.Input("latent", tooltip="Size of the pictures: an empty latent. Small is fast: 512 x 512 for large models."),
                io.Combo.Input("goal", options=list(GOALS), default="sharpness",
                               tooltip="What makes a picture better, unless a scorer is connected. prompt attention: share of the attention on the prompt's words (needs clip and prompts)."),
                io.String.Input("name", default="heads", tooltip="Name of the heads file, written to output/attention_loom/heads while the search runs."),
                io.Int.Input("per_round", default=9, min=1, max=256, tooltip="Heads found in each round. (paper: k; 3 for a style, 24 for general quality on SD3)"),
                io.Int.Input("rounds", default=1, min=1, max=20, tooltip="Rounds; each searches for heads that add to those found before, and takes as long as the first. (paper: R; 5 for a style)"),
                io.Int.Input("pairs", default=2, min=1, max=64, tooltip="Pictures per head: prompts in turn, seeds counted up. More is surer and slower. (paper: M; 5 to 20)"),
                io.Int.Input("steps", default=10, min=1, max=100, tooltip="Sampling steps of a picture. 10 to 15 will do for a search."),
                io.Float.Input("cfg", default=1.0, min=1.0, max=30.0, step=0.1, tooltip="CFG scale during the search. 1, as in the paper, shows the effect of heads alone and is fastest. Above 1 connect negative."),
                io.Float.Input("scale", default=3.0, min=0.1, max=20.0, step=0.1, tooltip="Scale of the head guidance during the search. (paper: w; 3 on SD3, 8 on FLUX.1 dev)"),
                io.Float.Input("u", default=1.0, min=0.01, max=1.0, step=0.01, tooltip="How far heads are weakened during the search. 1 shows effects best; afterwards lower u in Head Guidance."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, tooltip="Seed of the first pair; the others count up."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, for 'prompts'."),
                io.String.Input("prompts", default="", multiline=True, optional=True, tooltip="Prompts to search with, one per line; empty: 'positive' alone. Different contents make heads serve more than one picture."),
                io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt; needed above CFG 1."),
                Scorers.Input("scorer", optional=True, tooltip="Judges the pictures instead of 'goal': from Picture Scorer, or another pack's function of (images, prompt)."),
                *common.advanced(
                io.Float.Input("keep_layers", default=0.5, min=0.05, max=1.0, step=0.05, optional=True,
                               tooltip="First tries whole layers and goes on with the best share of them. 1 tries every head of every layer, as in the paper."),
                io.String.Input("blocks", default="", optional=True, tooltip="Blocks to search in; empty means all. 7-10 counts all blocks in order, d5 a double and s12-20 single blocks; for UNets d2.2-9, m0, u0.4."),
                io.Combo.Input("sampler_name", options=list(comfy.samplers.KSampler.SAMPLERS), default="euler", optional=True, tooltip="Sampler of the search."),
                io.Combo.Input("scheduler", options=list(comfy.samplers.KSampler.SCHEDULERS), default="simple", optional=True, tooltip="Scheduler of the search."),
                io.Combo.Input("target", options=list(TARGETS), default="identity", optional=True, tooltip="What weakened heads do, as in Head Guidance."),
                io.Combo.Input("rows", options=list(ROWS), default="all", optional=True, tooltip="Which tokens of joint attention are weakened, as in Head Guidance."),
                io.Float.Input("minutes", default=60.0, min=0.0, max=100000.0, step=1.0, optional=True, tooltip="Time allowed, in minutes; 0 means no limit. The estimate is made from the first pictures."),
                io.Combo.Input("if_longer", options=list(IF_LONGER), default=IF_LONGER[0], optional=True,
                               tooltip="When the search needs more than 'minutes': refuse and say how long it would take, or search that long and hand on the best so far."),
                ),
            ],
            outputs=[
                Heads.Output(display_name="heads", tooltip="The heads, for Head Guidance (SoftPAG). They remember their model."),
                io.Image.Output(display_name="preview", tooltip="Before and after, the best heads, and the score of every head tried."),
                io.String.Output(display_name="json", tooltip="The heads file as text: heads, scores, prompts, seeds and settings. 'heads' of Head Guidance reads it."),
                io.String.Output(display_name="report", tooltip="What was found, in words."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, positive: Any, vae: Any, latent: Any, goal: str, name: str, **settings: Any) -> io.NodeOutput:
        """validate -> search -> draw."""
        import comfy.utils

        session = configure(model, positive, vae, latent, goal, heads_path(name), **settings)
        bar = comfy.utils.ProgressBar(session.plan.pictures)
        session.run(lambda s: bar.update_absolute(s.hunt.done, s.plan.pictures, ("JPEG", draw(s), PREVIEW)))
        page = torch.from_numpy(np.array(draw(session))).float()[None] / 255
        text, report = session.file(), session.text()
        return io.NodeOutput(text, page, text, report, ui=ui.PreviewImage(page, cls=cls).as_dict() | {"text": (report,)})


def configure(
    model: Any,
    positive: Any,
    vae: Any,
    latent: Any,
    goal: str,
    heads_file: Path,
    per_round: int = 9,
    rounds: int = 1,
    pairs: int = 2,
    steps: int = 10,
    cfg: float = 1.0,
    scale: float = 3.0,
    u: float = 1.0,
    seed: int = 0,
    clip: Any = None,
    prompts: str = "",
    negative: Any = None,
    scorer: Any = None,
    keep_layers: float = 0.5,
    blocks: str = "",
    sampler_name: str = "euler",
    scheduler: str = "simple",
    target: str = "identity",
    rows: str = "all",
    minutes: float = 60.0,
    if_longer: str = IF_LONGER[0],
) -> Session:
    """The node's inputs as a search. Raises LoomError."""
    if cfg != 1.0 and negative is None:
        raise LoomError(f"cfg {cfg:g} was given without a negative prompt; connect negative, or set cfg to 1.")
    if scale == 0 or u == 0:
        raise LoomError(f"scale {scale:g} and u {u:g} were given; at 0 no head has an effect that could be searched.")
    texts = [line.strip() for line in prompts.splitlines() if line.strip()]
    if texts and clip is None:
        raise LoomError("prompts were written without a text encoder; connect clip, or empty 'prompts' to search with 'positive' alone.")
    push = SoftPAG(HeadSet(), u, common.choice("target", target, list(TARGETS)), common.choice("rows", rows, list(ROWS)), guidance=Guidance(scale))
    bench = Bench(
        model, vae, latent,
        fitting(with_prompts(clip, texts, positive) if texts else [("", positive)], negative, pairs, seed),
        Sampling(steps, cfg, sampler_name, scheduler), push, as_scorer(scorer) if scorer is not None else _goal(goal), clip,
    )  # fmt: skip
    plan = Plan(bench.layers(common.blocks(blocks)), pairs, rounds, per_round, keep_layers)
    return Session(bench, plan, heads_file, minutes, common.choice("if_longer", if_longer, list(IF_LONGER)) == IF_LONGER[1])


def _goal(name: str) -> Scorer:
    common.choice("goal", name, list(GOALS))
    return Measured(name) if name in MEASURES else PromptAttention()


def heads_path(name: str) -> Path:
    """Where a heads file of that name lies. Raises LoomError for a name that is no plain file name."""
    import folder_paths

    clean = name.strip().removesuffix(".json")
    if not NAME.fullmatch(clean):
        raise LoomError(f"'{name}' is not a name for a heads file; use letters, digits, blanks, - and _.")
    return Path(folder_paths.get_output_directory()) / "attention_loom" / "heads" / f"{clean}.json"


class LoomPictureScorer(io.ComfyNode):
    """Makes a :class:`core.hunt.scorers.Scorer`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What to measure, how much it counts, what else counts."""
        return io.Schema(
            node_id="LoomPictureScorer",
            display_name="Picture Scorer",
            category=common.category("guidance"),
            description="What a picture is worth to Find Guidance Heads: a measure, likeness to a picture of yours, attention on words, or several of these together. Downloads nothing.",
            inputs=[
                io.Combo.Input("measure", options=[*GOALS, *LIKENESS], default="reference look",
                               tooltip="reference look: colours and edges like those of the reference, wherever they lie; reference layout: light and dark in the same places; the others as in Find Guidance Heads."),
                io.Float.Input("weight", default=1.0, min=-100.0, max=100.0, step=0.01, tooltip="How much it counts. Negative: less of it is better."),
                io.Image.Input("reference", optional=True, tooltip="For the reference measures: one picture or several."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="A CLIP vision model you have: likeness to the reference is then the cosine of its embeddings."),
                io.String.Input("words", default="", optional=True, tooltip="For prompt attention: words of the prompts, separated by commas; empty: all words."),
                Scorers.Input("plus", optional=True, tooltip="Another scorer that counts as well."),
                io.Combo.Input("join", options=list(JOIN), default=JOIN[0], optional=True, tooltip="How the two count together: the sum, or the harmonic mean, which wants both high (scores above 0 only)."),
            ],
            outputs=[Scorers.Output(display_name="scorer", tooltip="For Find Guidance Heads, or for 'plus' of another Picture Scorer.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, measure: str, weight: float, **more: Any) -> io.NodeOutput:
        """One scorer out."""
        return io.NodeOutput(scorer(measure, weight, **more))


def scorer(measure: str, weight: float = 1.0, reference: Any = None, clip_vision: Any = None, words: str = "", plus: Any = None, join: str = JOIN[0]) -> Scorer:
    """The node's inputs as a scorer. Raises LoomError."""
    common.choice("measure", measure, [*GOALS, *LIKENESS])
    if measure in LIKENESS and reference is None:
        raise LoomError(f"measure '{measure}' needs a picture to compare with; connect reference.")
    if measure in LIKENESS:
        own: Scorer = Likeness.to(measure, reference, None if clip_vision is None else lambda images: clip_vision.encode_image(images)["image_embeds"])
    elif measure in MEASURES:
        own = Measured(measure)
    else:
        own = PromptAttention(tuple(w.strip() for w in words.split(",") if w.strip()))
    return joined(own, weight, plus, join)


def joined(own: Scorer, weight: float, plus: Any, join: str) -> Scorer:
    """A scorer with its weight and what else counts. Raises LoomError."""
    if weight == 0:
        raise LoomError("weight 0 was given: nothing would count; use a negative weight for less of it.")
    parts = [(weight, own)] + ([] if plus is None else [(1.0, as_scorer(plus))])
    if len(parts) == 1 and weight == 1.0:
        return own
    return Joined(tuple(parts), common.choice("join", join, list(JOIN)) == JOIN[1] and len(parts) > 1)


class LoomLoadHeads(io.ComfyNode):
    """Reads a heads file back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A name in, heads out."""
        return io.Schema(
            node_id="LoomLoadHeads",
            display_name="Load Heads",
            category=common.category("guidance"),
            description="Loads heads that Find Guidance Heads found before, also those of a search that was interrupted, for Head Guidance (SoftPAG).",
            inputs=[io.String.Input("name", default="heads", tooltip="Name of a file in output/attention_loom/heads, as given to Find Guidance Heads.")],
            outputs=[
                Heads.Output(display_name="heads", tooltip="For Head Guidance (SoftPAG). They remember their model."),
                io.String.Output(display_name="json", tooltip="The file as text."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        """Read again when the file has changed."""
        path = heads_path(name)
        return f"{path} {path.stat().st_mtime_ns if path.is_file() else 0}"

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """The file's text twice: as heads and as text."""
        text = read(heads_path(name))
        return io.NodeOutput(text, text)
