"""Everything a GPU has to tell about the kernels, in one command, on a machine with nothing but torch and triton.

    python tools/gpu_session.py                      checks, then the quick benchmark, within 25 minutes
    python tools/gpu_session.py --budget 3600 --full all shapes instead of three
    python tools/gpu_session.py --checks             numbers only
    python tools/gpu_session.py --dry                tiny sizes in Triton's interpreter: tries the command itself

Needs no network, no ComfyUI and no installed pack; uses pytest for the GPU tests of the kernels if it is there. Results go to
``$OUT`` or ``build/gpu_session`` as they come, so a session that is cut off keeps what it has:

    tuning/          launch settings, if the shipped table does not know the GPU
    checks.json      every checked number with its limit
    tests.txt        what pytest said
    <device>-<date>.json   benchmark rows, as in bench/results
    summary.md       the outcome, and the table

Exit status: 0 all well, 1 a limit is broken or a test failed, 2 no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECKS_SHARE, TESTS_SHARE = 0.25, 0.3
"""Most of the budget that checks and tests may take: the rest is for measuring."""


def main(argv: list[str] | None = None) -> int:
    """Run the session; returns the exit status."""
    args = _arguments(argv)
    if args.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
    import torch

    if not args.dry and not torch.cuda.is_available():
        print("not measured: no CUDA GPU")
        return 2
    import_pack()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if not args.dry:
        tune(args.out)
    broken = run_checks(args.out, began + CHECKS_SHARE * args.budget, args.dry)
    failed = None if args.checks or args.dry else run_tests(args.out, TESTS_SHARE * args.budget)
    if not args.checks:
        measure(args, args.budget - (time.monotonic() - began))
    summarise(args.out, broken, failed)
    return 1 if broken or failed else 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and measure the kernels on a GPU machine.")
    parser.add_argument("--budget", type=float, default=1500, metavar="SECONDS", help="nothing new is begun after this long (default 1500)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build" / "gpu_session"), help="folder of the results")
    parser.add_argument("--full", action="store_true", help="all shapes and the full protocol")
    parser.add_argument("--checks", action="store_true", help="no tests, no benchmark")
    parser.add_argument("--dry", action="store_true", help="tiny sizes in Triton's interpreter, no times")
    return parser.parse_args(argv)


def import_pack() -> None:
    """Make the pack importable under its own name, whatever the folder of the checkout is called."""
    if "attention_loom" in sys.modules or importlib.util.find_spec("attention_loom") is not None:
        return
    spec = importlib.util.spec_from_file_location("attention_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["attention_loom"] = module
    spec.loader.exec_module(module)


def tune(out: Path) -> None:
    """Measure launch settings where the shipped table does not know this GPU."""
    import torch
    from attention_loom.kernels.triton.candidates import measure_missing
    from attention_loom.kernels.triton.tuning import use_directory

    use_directory(out / "tuning")
    for width in (64, 128):
        found = measure_missing(width, torch.bfloat16, torch.device("cuda"))
        print(f"settings for head width {width}: {found or 'as shipped'}", flush=True)


def run_checks(out: Path, until: float, dry: bool) -> list[str]:
    """Every check; returns the broken ones as sentences."""
    from attention_loom.bench import checks

    found: list[dict[str, Any]] = []
    broken = []
    for name, check in checks.all_checks(checks.TINY if dry else checks.FULL, "cpu" if dry else "cuda"):
        if time.monotonic() > until:
            found.append({"check": name, "skipped": "out of time"})
            print(f"{name}: out of time", flush=True)
        else:
            try:
                for f in check():
                    found.append({"check": name, "what": f.name, "value": f.value, "limit": f.limit, "ok": f.ok})
                    if not f.ok:
                        broken.append(f"{name}: {f.name} is {f.value:.3g}, the limit is {f.limit:.3g}")
                    print(f"{'ok    ' if f.ok else 'BROKEN'} {name}: {f.name} {f.value:.3g} (limit {f.limit:.3g})", flush=True)
            except Exception as error:  # a launch may fail in any way, and the other checks still have something to say
                text = (str(error).strip().splitlines() or [""])[0]
                broken.append(f"{name}: {type(error).__name__}: {text}")
                found.append({"check": name, "error": f"{type(error).__name__}: {text}"})
                print(f"BROKEN {broken[-1]}", flush=True)
        (out / "checks.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    return broken


def run_tests(out: Path, seconds: float) -> str | None:
    """The kernel tests on the GPU, if pytest is there; returns what went wrong, None if nothing did."""
    if importlib.util.find_spec("pytest") is None:
        print("tests: pytest is not installed; the checks above stand alone", flush=True)
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "attention_loom").symlink_to(ROOT)
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "tests" / "pytest.ini"), "-q", "--maxfail=20", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors", str(ROOT / "tests" / "kernels")]
        with (out / "tests.txt").open("w", encoding="utf8") as log:
            try:
                environment = {**os.environ, "LOOM_GPU": "1", "PYTHONPATH": folder}
                status = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=False).returncode
            except subprocess.TimeoutExpired:
                print("tests: out of time", flush=True)
                return None
    last = (out / "tests.txt").read_text(encoding="utf8").strip().splitlines()[-1:] or [""]
    print(f"tests: {last[0]}", flush=True)
    return None if status == 0 else f"the kernel tests failed: {last[0]}"


def measure(args: argparse.Namespace, seconds: float) -> None:
    """The benchmark, for the rest of the time."""
    from attention_loom.bench import kernels

    if args.dry:
        kernels.main(["--dry", "--out", str(args.out), "--only", "tiny-image", "--only", "random"])
    elif seconds > 30:
        kernels.main(["--out", str(args.out), "--budget", str(seconds), *([] if args.full else ["--quick"])])


def summarise(out: Path, broken: list[str], failed: str | None) -> None:
    """One page for a person."""
    from attention_loom.bench import report

    problems = broken + ([failed] if failed else [])
    lines = ["# GPU session", "", *([f"- {p}" for p in problems] or ["All checks within their limits."])]
    for path in sorted(out.glob("*.json")):
        if path.name != "checks.json":
            lines += ["", report.section(json.loads(path.read_text(encoding="utf8")))]
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf8")
    print(f"{len(problems)} broken" if problems else "all checks within their limits", flush=True)


if __name__ == "__main__":
    sys.exit(main())
