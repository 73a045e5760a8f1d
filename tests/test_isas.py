"""What `make test-isas` runs: every set on one core and two, in files that are there."""

import os

import isas
from longest import LONGEST

TESTS = {path.stem for path in isas.HERE.glob("test_*.py")}


def test_the_lists_name_files_that_are_there():
    assert {f"test_{name}" for name in isas.FAST} <= TESTS
    assert set(LONGEST) <= {path.stem for path in isas.HERE.rglob("test_*.py")}
    assert len(isas.FAST) >= len(TESTS) / 3


def test_what_the_processor_cannot_do_is_passed_over_and_said():
    found = list(isas.combinations({"sse4_2", "avx2"}, cores=2))
    assert [(isa, cores) for isa, cores, why in found if not why] == [
        ("SSE4_2", 1), ("SSE4_2", 2), ("AVX2", 1), ("AVX2", 2)
    ]  # fmt: skip
    assert found[4:] == [("AVX512", n, "this processor has no AVX512") for n in (1, 2)]
    assert all(why for _, cores, why in isas.combinations({"avx512f"}, cores=1) if cores == 2)


def test_each_combination_runs_and_the_one_that_fails_is_named(monkeypatch, capsys):
    ran = []

    def call(command, env, preexec_fn):
        ran.append((env["FLAXLM_TEST_ISA"], command[command.index("-n") + 1]))
        return int(ran[-1] == ("AVX2", "2"))

    monkeypatch.setattr(isas, "instructions", lambda: {"sse4_2", "avx2", "avx512f"})
    monkeypatch.setattr(isas.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(isas.os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(isas.subprocess, "call", call)
    assert isas.main([]) == 1
    assert ran == [(isa, n) for isa in isas.ISAS for n in ("0", "2")]
    assert capsys.readouterr().out.endswith("failed: AVX2 on 2 cores\n")


def test_the_instruction_set_is_added_to_the_flags_that_are_there():
    isa, flags = os.environ.get("FLAXLM_TEST_ISA"), os.environ.get("XLA_FLAGS", "")
    assert flags.count("--xla_cpu_max_isa") == (isa is not None)
    if isa and not {"FLAXLM_PARITY", "FLAXLM_ZERO_SHOT"} & os.environ.keys():
        assert len(flags.split()) > 1
