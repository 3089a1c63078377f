"""Everything a GPU has to tell about the pack, in one command: are the numbers right, how fast are the kernels, how fast are whole models.

    python bench/gpu_all.py                          everything, within 25 minutes
    python bench/gpu_all.py --budget 580             as much as fits; the next call goes on where this one stopped
    python bench/gpu_all.py --only kernels           one stage (may be repeated); --list names them
    python bench/gpu_all.py --dry                    tiny sizes in Triton's interpreter, no times: tries the command itself

A bare machine with torch and triton is enough: no network, no installed pack, pytest if it is there. The model stages want a
ComfyUI tree beside it (``bench/host.py``); without one they say so and the others run. Each stage is a process of its own under
its own time limit: one that crashes or hangs costs its own rows. Results go to ``$OUT`` or ``build/gpu_all`` as they come:

    gpu_all.json   every row, every checked number with its limit, how far each stage came
    summary.md     the outcome: broken limits, goals met and missed, tables
    tests.txt      what pytest said
    tuning/        launch settings, if the shipped table does not know the GPU

A stage that is done for the same kernels, GPU, driver and versions is not run again, and one that was cut off keeps its rows. Results
of other kernels are set aside. ``python -m attention_loom.bench.report build/gpu_all/gpu_all.json --write`` publishes them.

Exit status: 0 all well, 1 a limit is broken or a stage failed, 2 no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FILE = "gpu_all.json"
GRACE = 40.0
"""Seconds a stage may take to finish the row it is at when its time is up."""
WORTH = 15.0
"""Seconds below which no further stage is begun."""


def import_pack() -> None:
    """Make the pack importable under its own name, whatever the folder of the checkout is called.

    The folders of the checkout hold modules with common names (``kernels``, ``nodes``): they must not be on the path themselves.
    """
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() not in (HERE, ROOT)]
    if "attention_loom" in sys.modules or importlib.util.find_spec("attention_loom") is not None:
        return
    spec = importlib.util.spec_from_file_location("attention_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["attention_loom"] = module
    spec.loader.exec_module(module)


def main(argv: list[str] | None = None) -> int:
    """Run the stages; returns the exit status."""
    args = _arguments(argv)
    if args.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
    import_pack()
    import torch
    from attention_loom.bench import stages

    known = {s.name: s for s in stages.STAGES}
    if args.list:
        print("\n".join(f"{s.name:24} {s.seconds:5.0f} s  {s.title}" for s in stages.STAGES))
        return 0
    unknown = sorted({*args.only, *args.again} - set(known))
    if unknown:
        print(f"there is no stage {', '.join(unknown)}; --list names them")
        return 2
    if not args.dry and not torch.cuda.is_available():
        print("not measured: no CUDA GPU")
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage:
        return stages.run(known[args.stage], args.out / FILE, args.seconds, args.dry)
    return _session(args, [s for s in stages.STAGES if not args.only or s.name in args.only])


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and measure everything on a GPU machine.")
    parser.add_argument("--budget", type=float, default=1500, metavar="SECONDS", help="nothing new is begun after this long (default 1500)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build" / "gpu_all"), help="folder of the results")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on from this gpu_all.json, which may lie elsewhere")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="one stage; may be repeated")
    parser.add_argument("--again", action="append", default=[], metavar="STAGE", help="forget what this stage has and run it anew")
    parser.add_argument("--list", action="store_true", help="name the stages and their time limits")
    parser.add_argument("--dry", action="store_true", help="tiny sizes in Triton's interpreter, no times")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # the child process of one stage
    parser.add_argument("--seconds", type=float, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _session(args: argparse.Namespace, wanted: list) -> int:
    from attention_loom.bench import stages
    from attention_loom.bench.results import Results

    path, began = args.out / FILE, time.monotonic()
    if args.resume and not path.exists():
        path.write_bytes(args.resume.read_bytes())
    results = Results.resume(path)
    for name in args.again:
        stages.forget(results, name)
    results.write()
    for stage in wanted:
        left = args.budget - (time.monotonic() - began)
        if results.stages.get(stage.name, {}).get("state") == "done":
            print(f"== {stage.name}: done before", flush=True)
            continue
        if left < WORTH:
            print(f"== {stage.name}: no time left", flush=True)
            continue
        seconds = min(stage.seconds, left)
        print(f"== {stage.name}: {stage.title} (at most {seconds:.0f} s)", flush=True)
        started = time.monotonic()
        failed = None
        if args.dry:
            stages.run(stage, path, seconds, dry=True)
        else:
            failed = _child(stage.name, args.out, seconds)
        results = Results.resume(path)  # the stage has written to it
        if failed:
            kept = results.stages.get(stage.name, {})
            results.stages[stage.name] = kept | {"state": failed, "seconds": round(time.monotonic() - started, 1)}
            results.write()
            print(failed, flush=True)
        stages.summarise(results, args.out)
    print(stages.summarise(results, args.out), flush=True)
    return 1 if stages.problems(results) else 0


def _child(name: str, out: Path, seconds: float) -> str | None:
    """Run one stage as a process of its own; returns what went wrong with the process, None if nothing did."""
    command = [sys.executable, str(Path(__file__).resolve()), "--stage", name, "--seconds", str(seconds), "--out", str(out)]
    try:
        status = subprocess.run(command, timeout=seconds + GRACE, check=False).returncode
    except subprocess.TimeoutExpired:
        return "killed: it did not stop when its time was up"
    return None if status == 0 else f"failed: the process ended with status {status}"


if __name__ == "__main__":
    sys.exit(main())
