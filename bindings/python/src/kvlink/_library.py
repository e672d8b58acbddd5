"""Finds and loads libkvlink: the environment's, the package's own, or the system's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from . import _abi
from ._version import __version__

SONAME = "libkvlink.so.0"
VARIABLE = "KVLINK_LIBRARY"


def _places() -> Iterator[tuple[str, str]]:
    """What to try, in this order: a description, and what the loader gets."""
    named = os.environ.get(VARIABLE)
    if named:
        # Who names a library means that one: nothing else is tried.
        yield f"{VARIABLE}={named}", named
        return
    bundled = Path(__file__).with_name(SONAME)
    yield f"the package's own {bundled}", str(bundled)
    yield f"the system's {SONAME}", SONAME


def _compatible(library: str, package: str) -> bool:
    """Within a major version, or a minor version before 1.0, functions and structs only grow."""
    have, want = (tuple(int(n) for n in v.split(".")[:2]) for v in (library, package))
    return have[0] == want[0] and (have[1] == want[1] if want[0] == 0 else have[1] >= want[1])


def _open(name: str) -> ctypes.CDLL:
    """Loads one library and binds its functions; an OSError says why it is unfit."""
    # CDLL releases the interpreter's lock during calls, so that one that waits stops nobody.
    library = ctypes.CDLL(name)
    try:
        for function, (result, arguments) in _abi.PROTOTYPES.items():
            bound = getattr(library, function)
            bound.restype, bound.argtypes = result, arguments
    except AttributeError as e:
        raise OSError(f"it lacks a function of kvlink {__version__}: {e}") from None
    version = library.kvlink_version().decode()
    if not _compatible(version, __version__):
        raise OSError(f"it is version {version}, the package is for {__version__}")
    return library


def load() -> ctypes.CDLL:
    """The library, or an ImportError that names each place and why it failed."""
    failures = []
    for what, name in _places():
        try:
            return _open(name)
        except OSError as e:
            failures.append(f"  {what}: {e}")
    raise ImportError(f"kvlink finds no fit {SONAME}; tried were\n" + "\n".join(failures))


lib = load()
