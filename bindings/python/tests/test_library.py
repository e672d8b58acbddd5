"""Which library is loaded, and what is said if none is fit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from support import python

import kvlink
from kvlink._library import SONAME, _compatible


def test_vllm_is_not_imported_unless_asked_for() -> None:
    run = python("import kvlink, sys; print([m for m in sys.modules if 'vllm' in m or m == 'torch'])")
    assert run.stdout.strip() == "[]", run.stderr


def test_the_environment_s_library_wins_and_nothing_else_is_tried(tmp_path: Path) -> None:
    copy = tmp_path / "other.so"
    shutil.copy(_path_of_library(), copy)
    run = python("from kvlink._library import lib; print(lib._name)", KVLINK_LIBRARY=str(copy))
    assert run.stdout.strip() == str(copy), run.stderr
    run = python("import kvlink", KVLINK_LIBRARY="/nowhere/libkvlink.so")
    assert run.returncode == 1
    assert "ImportError: kvlink finds no fit libkvlink.so.0" in run.stderr
    assert "KVLINK_LIBRARY=/nowhere/libkvlink.so: /nowhere/libkvlink.so: cannot open shared object" in run.stderr


def test_without_the_variable_bundle_and_system_are_tried_and_named(tmp_path: Path) -> None:
    shutil.copytree(
        Path(kvlink.__file__).parent, tmp_path / "kvlink", ignore=shutil.ignore_patterns("*.so*", "__pycache__")
    )
    # A name that no system has, since libkvlink may be installed here.
    name, module = "libkvlink-of-this-test.so.0", tmp_path / "kvlink" / "_library.py"
    module.write_text(module.read_text(encoding="utf-8").replace(SONAME, name), encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import kvlink; print(kvlink._lib._name)"
    run = python(code, KVLINK_LIBRARY="", LD_LIBRARY_PATH=str(tmp_path))
    assert run.returncode == 1
    bundled = tmp_path / "kvlink" / name
    assert f"  the package's own {bundled}: {bundled}: cannot open shared object" in run.stderr
    assert f"  the system's {name}: {name}: cannot open shared object" in run.stderr
    for place, loaded in ((tmp_path / name, name), (bundled, str(bundled))):
        shutil.copy(_path_of_library(), place)
        run = python(code, KVLINK_LIBRARY="", LD_LIBRARY_PATH=str(tmp_path))
        assert run.stdout.strip() == loaded, run.stderr


def _path_of_library() -> str:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return next(line.split()[-1] for line in maps if "libkvlink" in line)


def test_a_library_of_another_version_or_kind_is_refused(tmp_path: Path) -> None:
    functions = [f"int {name}(void) {{ return 0; }}" for name in _functions() if name != "kvlink_version"]
    for body, message in (
        ('const char *kvlink_version(void) { return "0.2.0"; }', "it is version 0.2.0, the package is for 0.1.0"),
        ("", "it lacks a function of kvlink 0.1.0"),
    ):
        source, library = tmp_path / "other.c", tmp_path / "other.so"
        source.write_text("\n".join([*functions, body]))
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        run = python("import kvlink", KVLINK_LIBRARY=str(library))
        assert run.returncode == 1
        assert message in run.stderr


def _functions() -> list[str]:
    from kvlink import _abi

    return list(_abi.PROTOTYPES)


def test_versions_that_fit() -> None:
    assert _compatible("0.1.9", "0.1.0")
    assert not _compatible("0.2.0", "0.1.0")
    assert _compatible("1.4.0", "1.2.3")
    assert not _compatible("1.1.0", "1.2.0")
    assert not _compatible("2.0.0", "1.2.0")
