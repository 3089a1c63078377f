"""Measured launch settings: when they are measured, where they are kept, what makes a file count."""

import json
import threading

import pytest
import torch
from attention_loom.kernels.triton import candidates, launch, tuning
from attention_loom.kernels.triton.settings import Settings, settings

CPU = torch.device("cpu")
A, B, C = Settings(64, 64, 4, 1), Settings(128, 64, 8, 2), Settings(64, 32, 4, 3)
KEY = tuning.tuning_key("forward", "sm_130", 128, 2, 128, 64, ["bias", "alpha"], 0.08)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(tuning.ENVIRONMENT, raising=False)
    tuning.use_directory(tmp_path)
    yield tmp_path
    tuning.use_directory(None)


def fake_clock(times):
    """Measures a launch by what it was launched with."""
    tried = []

    def measure(launch):
        tried.append(tuning.on_trial())
        launch()
        return times[tuning.on_trial()]

    return measure, tried


def file_of(folder):
    (path,) = folder.glob("*.json")
    return path


def test_key_holds_what_settings_depend_on():
    assert KEY == "forward sm_130 d128 b2 128x64 alpha+bias r0.1"
    assert tuning.tuning_key("forward", "sm_130", 64, 4).endswith("plain r1")
    buckets = [tuning.tuning_key("f", "a", 64, 2, density=d).split("r")[-1] for d in (0.01, 0.05, 0.051, 0.25, 0.3, 0.6, 1.0)]
    assert buckets == ["0.05", "0.05", "0.1", "0.25", "0.5", "1", "1"]


def test_the_fastest_is_taken_and_kept_for_the_next_process(folder):
    measure, tried = fake_clock({A: 3.0, B: 1.0, C: 2.0})
    assert tuning.tune(KEY, [A, B, C], lambda: None, CPU, deterministic=False, measure=measure) == B
    assert tried == [A, B, C]
    assert tuning.tuned(KEY, CPU) == B
    assert tuning.tune(KEY, [A], lambda: None, CPU, deterministic=False, measure=measure) == B
    assert tried == [A, B, C], "known settings were measured again"
    tuning.forget()
    assert tuning.tuned(KEY, CPU) == B
    kept = json.loads(file_of(folder).read_text())
    assert kept == {"machine": tuning.machine(CPU), "settings": {KEY: [128, 64, 8, 2]}}
    assert not list(folder.glob("*.part"))


def test_a_run_keeps_the_settings_it_began_with():
    assert tuning.tuned(KEY, CPU) is None
    tuning.remember(KEY, B, CPU)
    assert tuning.tuned(KEY, CPU) is None
    measure, tried = fake_clock({A: 1.0})
    assert tuning.tune(KEY, [A], lambda: None, CPU, measure=measure) is None
    assert not tried, "deterministic is the default and measures nothing"
    tuning.forget()
    assert tuning.tuned(KEY, CPU) == B


def test_nothing_is_measured_without_a_gpu_or_without_room(monkeypatch):
    assert tuning.tune(KEY, [A], lambda: pytest.fail("launched"), CPU, deterministic=False) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30 - 1, 8 * 2**30))
    assert not tuning._may_measure(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 8 * 2**30))
    assert tuning._may_measure(torch.device("cuda"))


def test_a_candidate_that_fails_is_passed_over():
    def launch():
        if tuning.on_trial() == A:
            raise RuntimeError("out of resource: shared memory")

    measure, _ = fake_clock({B: 1.0})
    assert tuning.tune(KEY, [A, B], launch, CPU, deterministic=False, measure=measure) == B
    assert tuning.on_trial() is None
    assert tuning.tune("other", [A], launch, CPU, deterministic=False, measure=measure) is None
    assert tuning.tuned("other", CPU) is None


def test_candidates_and_seconds_are_limited(monkeypatch):
    many = [Settings(64, 64, 4, 1 + i % 8) for i in range(20)]
    measure, tried = fake_clock(dict.fromkeys(many, 1.0))
    tuning.tune(KEY, many, lambda: None, CPU, deterministic=False, measure=measure)
    assert len(tried) == tuning.MOST_CANDIDATES == 12
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: next(now))
    measure, tried = fake_clock(dict.fromkeys(many, 1.0))
    tuning.tune("slow", many, lambda: None, CPU, deterministic=False, measure=measure)
    assert len(tried) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "null", '{"machine": {}, "settings": {}}', '{"settings": {}}', "\x00\xff"],
)
def test_a_damaged_file_is_ignored_and_rewritten(folder, text):
    tuning.remember(KEY, A, CPU)
    path = file_of(folder)
    path.write_text(text)
    tuning.forget()
    assert tuning.tuned(KEY, CPU) is None
    tuning.remember(KEY, B, CPU)
    tuning.forget()
    assert tuning.tuned(KEY, CPU) == B


@pytest.mark.parametrize("numbers", [[64, 64, 4], [64, 48, 4, 1], [64, 64, 0, 1], ["64", 64, 4, 1], [512, 64, 4, 1], [64, 64, 4, 99], 3, None])
def test_settings_no_kernel_could_run_make_a_file_damaged(folder, numbers):
    tuning.remember(KEY, A, CPU)
    path = file_of(folder)
    kept = json.loads(path.read_text())
    kept["settings"][KEY] = numbers
    path.write_text(json.dumps(kept))
    tuning.forget()
    assert tuning.tuned(KEY, CPU) is None


@pytest.mark.parametrize("part", ["gpu", "driver", "torch", "triton", "pack"], ids=lambda part: f"other-{part}")
def test_a_file_of_another_machine_or_version_does_not_count(folder, part):
    tuning.remember(KEY, A, CPU)
    path = file_of(folder)
    kept = json.loads(path.read_text())
    kept["machine"][part] += "x"
    path.write_text(json.dumps(kept))
    tuning.forget()
    assert tuning.tuned(KEY, CPU) is None


def test_directory_comes_from_the_caller_then_from_the_environment(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv(tuning.ENVIRONMENT, str(elsewhere))
    tuning.remember(KEY, A, CPU)
    assert not list(elsewhere.iterdir())
    tuning.use_directory(None)
    tuning.remember(KEY, B, CPU)
    assert len(list(elsewhere.iterdir())) == 1
    monkeypatch.delenv(tuning.ENVIRONMENT)
    tuning.use_directory(None)
    assert tuning.tuned(KEY, CPU) is None
    tuning.remember("memory only", C, CPU)
    assert tuning.tuned("memory only", CPU) == C


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    tuning.use_directory(tmp_path / "file")
    tuning.remember(KEY, A, CPU)
    assert tuning.tuned(KEY, CPU) == A


def test_a_trial_belongs_to_its_thread():
    seen = []
    with tuning.trial(A):
        thread = threading.Thread(target=lambda: seen.append(tuning.on_trial()))
        thread.start()
        thread.join()
        assert tuning.on_trial() == A
    assert seen == [None]


def test_machine_names_versions_and_no_path():
    found = tuning.machine(CPU)
    assert set(found) == {"gpu", "driver", "torch", "triton", "pack"}
    assert found["torch"] == torch.__version__
    assert found["pack"] == "0.1.0"
    assert "/" not in "".join(found.values())


# --- what is tried --------------------------------------------------------------------------------------------------------


def test_candidates_are_few_and_the_best_guess_comes_first():
    for arch in ("sm_75", "sm_130", "gfx1300", "gfx906"):
        for width in (40, 64, 128, 256):
            for size in (2, 4):
                found = candidates.candidates(arch, width, size)
                assert 4 <= len(found) <= tuning.MOST_CANDIDATES
                assert len(set(found)) == len(found)
                assert found[0] == settings(arch, width, size)


def test_synthetic_data_is_small():
    for width in (32, 64, 80, 128, 256):
        for dtype in (torch.bfloat16, torch.float32):
            tokens = candidates.synthetic_tokens(width, dtype.itemsize)
            q = torch.empty(1, candidates.HEADS, tokens, width, dtype=dtype, device="meta")
            lse = torch.empty(1, candidates.HEADS, tokens, device="meta")
            assert tokens >= 1024
            assert tokens % candidates.BLOCK == 0
            assert tuning.bytes_of(q, q, q, q, lse) <= tuning.MOST_BYTES


@pytest.mark.interpreter
def test_every_candidate_is_launched_as_such(monkeypatch):
    launched = []
    inner = launch.choose

    def choose(*args, **more):
        launched.append(inner(*args, **more))
        return launched[-1]

    monkeypatch.setattr("attention_loom.kernels.triton.op.choose", choose)
    monkeypatch.setattr(tuning, "MOST_SECONDS", 600.0)
    some = [Settings(64, 64, 4, 1), Settings(32, 32, 4, 1)]
    monkeypatch.setattr(candidates, "candidates", lambda *a: some)
    times = iter([2.0, 1.0])
    best = candidates.measure_missing(32, torch.float16, CPU, tokens=128, measure=lambda call: (call(), next(times))[1])
    assert [s.block_m for s in launched] == [64, 32]
    assert best == some[1]
    assert candidates.measure_missing(32, torch.float16, CPU) is None, "the interpreter is in the table"
