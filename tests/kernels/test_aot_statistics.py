"""What the machine code of the kernels must be like, compiled without a GPU: nothing spilt, matrix instructions not run one by one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SCRIPT = """
import json, sys
sys.path.insert(0, {tools!r})
import aot, sass
aot.import_pack()
found = {{}}
for feature in ("blocks", "frames"):
    settings, compiled = aot.compile_one("sm_90", 128, 2, feature, "bf16")
    loops = sass.loops(sass.instructions(sass.disassemble(compiled.asm["cubin"])))
    found[feature] = [dict(matrix=l.kinds["matrix"], waits=l.count("WARPGROUP.DEPBAR"), exp2=l.kinds["exp2"], local=l.kinds["local"], skipped=l.skipped) for l in loops]
    found[feature + " stack"] = int(aot.resources(compiled, "sm_90")[1])
print(json.dumps(found))
"""
CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;                                           /* 0x00000a0000017a02 */
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], RZ, !UPT ;            /* 0x0 */
        /*0020*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;                                  /* 0x0 */
        /*0030*/               @P0 BRA 0x60 ;                                                       /* 0x0 */
        /*0040*/                   FSEL R24, R24, -INF , !P1 ;                                      /* 0x0 */
        /*0050*/                   FSEL R25, R25, -INF , !P1 ;                                      /* 0x0 */
        /*0060*/                   MUFU.EX2 R24, R24 ;                                              /* 0x0 */
        /*0070*/                   LDGSTS.E.BYPASS.128 [R43], desc[UR28][R18.64] ;                  /* 0x0 */
        /*0080*/              @!P2 BRA 0x10 ;                                                       /* 0x0 */
        /*0090*/                   EXIT ;                                                           /* 0x0 */
"""


@pytest.fixture
def sass(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import sass

    return sass


def test_loops_are_read_from_machine_code(sass):
    (loop,) = sass.loops(sass.instructions(CODE))
    assert (loop.first, loop.last, loop.total, loop.skipped) == (0x10, 0x80, 8, 2)
    assert dict(loop.kinds) == {"matrix": 1, "barrier": 1, "branch": 2, "fp32": 2, "exp2": 1, "async copy": 1}
    assert loop.count("WARPGROUP.DEPBAR") == 1
    assert sass.loops(sass.instructions(CODE.replace("@!P2 BRA 0x10", "@!P2 BRA 0x90"))) == []


def test_hopper_runs_matrix_instructions_side_by_side_and_spills_next_to_nothing():
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(tools=str(TOOLS))], capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for feature in ("blocks", "frames"):
        for loop in found[feature]:
            assert loop["waits"] <= 2 < loop["matrix"], f"{feature}: the compiler waits after every matrix instruction"
            assert loop["local"] <= 4
        assert found[f"{feature} stack"] <= 16
    assert found["blocks"][0]["skipped"] > 60, "blocks full of keys pass by the test for dead ones"


def test_the_page_has_a_place_for_the_table():
    page = (TOOLS.parent / "docs" / "performance.md").read_text(encoding="utf8")
    text = page.split("<!-- statistics: written by tools/aot_statistics.py -->")[1].split("<!-- end of statistics -->")[0]
    assert "| forward | blocks | 128 |" in text
    assert "share of peak, computed" in text
