"""What the build refuses to put into a wheel; that the tag of a good one is true is auditwheel's to say."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

HOOK = Path(__file__).parents[1] / "hatch_build.py"


def platform_tag(library: Path) -> Any:
    spec = importlib.util.spec_from_file_location("hatch_build", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.platform_tag(library)


def compiled(folder: Path, *flags: str) -> Path:
    (folder / "other.c").write_text("#include <math.h>\ndouble f(double x) { return pow(x, 0.3); }")
    library = folder / "other.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "other.c", *flags], check=True)
    return library


def test_a_library_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has the SONAME \['libother.so.1'\], not libkvlink.so.0"):
        platform_tag(compiled(tmp_path, "-Wl,-soname,libother.so.1", "-lm"))


def test_a_library_that_needs_more_than_manylinux_promises_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs libstdc\+\+.so.6, which manylinux does not promise"):
        platform_tag(compiled(tmp_path, "-Wl,-soname,libkvlink.so.0", "-lm", "-Wl,--no-as-needed", "-l:libstdc++.so.6"))


def test_the_tag_is_that_of_the_newest_symbol(tmp_path: Path) -> None:
    # pow got a new version with glibc 2.29.
    assert (
        platform_tag(compiled(tmp_path, "-Wl,-soname,libkvlink.so.0", "-lm")) == f"manylinux_2_29_{platform.machine()}"
    )
