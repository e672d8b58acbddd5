"""Puts libkvlink into the wheel and names the platform that it needs.

hatchling, because a library beside the modules takes no more than a hook there: no compiler that the backend runs, no
subclassed commands. KVLINK_BUILD_LIBRARY says where the library comes from:

    a path     this file (what ``cmake --install`` or a release made)
    "system"   none: the package uses the system's libkvlink.so.0, as distributions want it
    unset      ``cargo build --release`` of the repository around this folder
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SONAME = "libkvlink.so.0"
# The machines of ELF files as wheels call them.
MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}
# What PEP 600 lets a wheel need from the system, of what a C library without C++ could need.
SYSTEM = re.compile(r"(libc|libm|libgcc_s|libdl|libpthread|librt|ld-linux[\w-]*)\.so\.\d+")


def platform_tag(library: Path) -> str:
    """The manylinux tag of a library: its machine, and the newest glibc symbol that it needs."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        machine = MACHINES.get(elf.header["e_machine"])
        if machine is None:
            raise ValueError(f"{library} is for {elf.header['e_machine']}, known are {', '.join(MACHINES)}")
        versions = []
        for section in elf.iter_sections():
            if isinstance(section, DynamicSection):
                check_names(library, list(section.iter_tags()))
            elif isinstance(section, GNUVerNeedSection):
                for _, auxiliaries in section.iter_versions():
                    found = (re.fullmatch(r"GLIBC_(\d+)\.(\d+)(\.\d+)?", a.name) for a in auxiliaries)
                    versions += [(int(m[1]), int(m[2])) for m in found if m]
    if not versions:
        raise ValueError(f"{library} names no glibc version: it is no library of a glibc system")
    major, minor = max(versions)
    return f"manylinux_{major}_{minor}_{machine}"


def check_names(library: Path, tags: list[Any]) -> None:
    """Whether it is the library, and needs nothing that it may not."""
    sonames = [t.soname for t in tags if t.entry.d_tag == "DT_SONAME"]
    if sonames != [SONAME]:
        raise ValueError(f"{library} has the SONAME {sonames}, not {SONAME}")
    for needed in (t.needed for t in tags if t.entry.d_tag == "DT_NEEDED"):
        if not SYSTEM.fullmatch(needed):
            raise ValueError(f"{library} needs {needed}, which manylinux does not promise")


def build(root: Path) -> Path:
    """The library, built by cargo."""
    if not (root / "Cargo.toml").exists():
        raise FileNotFoundError(f"no kvlink sources at {root}: set KVLINK_BUILD_LIBRARY to a library, or to system")
    subprocess.run(["cargo", "build", "--release", "--lib", "--locked"], cwd=root, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    return root / target / "release" / "libkvlink.so"


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that hatchling runs before it writes the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the library and the tag; an editable install gets its library as tests do, through KVLINK_LIBRARY."""
        named = os.environ.get("KVLINK_BUILD_LIBRARY", "")
        if named == "system" or version == "editable":
            return
        if platform.system() != "Linux":
            raise OSError(f"kvlink runs on Linux, this is {platform.system()}")
        library = Path(named) if named else build(Path(self.root).parents[1])
        build_data["force_include"][str(library.resolve())] = f"kvlink/{SONAME}"
        build_data["tag"] = f"py3-none-{platform_tag(library)}"
        build_data["pure_python"] = False
