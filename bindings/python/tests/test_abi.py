"""The generated module is that of the header, and the C compiler agrees with it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvlink
from kvlink import _abi, _errors

ROOT = Path(__file__).parents[3]
HEADER = ROOT / "include" / "kvlink.h"
STRUCTS = [c for c in vars(_abi).values() if isinstance(c, type) and issubclass(c, ctypes.Structure)]


def test_the_module_is_what_the_generator_makes_of_the_header() -> None:
    generator = ROOT / "bindings/python/tools/generate_abi.py"
    run = subprocess.run([sys.executable, str(generator), str(HEADER)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == Path(_abi.__file__).read_text(encoding="utf-8"), "run tools/generate_abi.py"


def test_the_c_compiler_gives_structs_the_same_size_and_offsets(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler is not None
    ours, lines = [], []
    for struct in STRUCTS:
        ours.append(f"{struct.__name__} {ctypes.sizeof(struct)}")
        lines.append(f'printf("{struct.__name__} %zu\\n", sizeof({struct.__name__}));')
        for name, *_ in struct._fields_:
            ours.append(f"{struct.__name__}.{name} {getattr(struct, name).offset}")
            lines.append(f'printf("{struct.__name__}.{name} %zu\\n", offsetof({struct.__name__}, {name}));')
    source = tmp_path / "sizes.c"
    source.write_text("#include <stdio.h>\n#include <kvlink.h>\nint main(void) {" + "\n".join(lines) + "return 0; }")
    program = tmp_path / "sizes"
    subprocess.run([compiler, "-I", HEADER.parent, str(source), "-o", str(program)], check=True)
    theirs = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    assert theirs == ours
    assert len(STRUCTS) > 15


def test_every_function_of_the_library_is_bound() -> None:
    listed = (ROOT / "abi" / "kvlink.symbols").read_text(encoding="utf-8").split()
    assert sorted(_abi.PROTOTYPES) == sorted(listed)


def test_versions_agree() -> None:
    cargo = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{kvlink.__version__}"\n' in cargo
    assert kvlink.library_version() == kvlink.__version__


@pytest.mark.parametrize("status", [s for s in kvlink.Status if s != kvlink.Status.OK])
def test_every_status_has_an_exception_of_its_range(status: kvlink.Status) -> None:
    error = _errors.error_of(status, "what")
    ranges = [kvlink.CallError, kvlink.HostError, kvlink.PeerError, kvlink.TransferError, kvlink.BackendError]
    ranges.append(kvlink.InternalError)
    assert isinstance(error, ranges[-status // 100])
    assert error.status is status
    assert str(error) == f"{_errors.status_text(status)}: what"
    assert (
        "unknown" not in str(error) or status == kvlink.Status.UNKNOWN_ENUM or status == kvlink.Status.UNKNOWN_REQUEST
    )


def test_a_status_of_a_newer_library_is_taken_by_its_range() -> None:
    error = _errors.error_of(-399, "what")
    assert type(error) is kvlink.TransferError
    assert error.status == -399
    assert type(_errors.error_of(-999, "what")) is kvlink.Error
