"""Lets torch's wheel of PyPI be imported without CUDA: makes empty libraries of the names that it is linked to.

    cuda_stubs.py ENVIRONMENT

Their functions return an error, so that torch finds no device.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

# cudaErrorNoDevice.
ERROR = 100
# Symbols without a version do not say whose they are.
PREFIXES = {
    "libcufile.so": "cuFile",
    "libcurand.so": "curand",
    "libcusparseLt.so": "cusparseLt",
    "libnccl.so": "p?nccl",
}


def output(*command: str, **environment: str) -> str:
    """What a program prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment or None).stdout


def missing(libraries: list[Path], lib: Path) -> set[str]:
    """Names of libraries that nothing provides. The driver is looked for when it is used."""
    found = set()
    for library in libraries:
        lines = output("ldd", str(library), LD_LIBRARY_PATH=str(lib), PATH="/usr/bin:/bin").splitlines()
        found |= {line.split()[0] for line in lines if line.endswith("not found")}
    return found - {"libcuda.so.1"}


def versions(libraries: list[Path]) -> dict[str, set[str]]:
    """The symbol versions that are wanted of each library."""
    found: dict[str, set[str]] = {}
    for library in libraries:
        name = ""
        for line in output("readelf", "-V", "-W", str(library)).splitlines():
            if match := re.search(r"File: (\S+)", line):
                name = match[1]
            elif (match := re.search(r"Name: (\S+)", line)) and name:
                found.setdefault(name, set()).add(match[1])
    return found


def undefined(libraries: list[Path]) -> set[tuple[str, str, str]]:
    """Name, version and type of symbols that none of the libraries has."""
    wanted, there = set(), set()
    for library in libraries:
        for line in output("readelf", "--dyn-syms", "-W", str(library)).splitlines():
            fields = line.split()
            if len(fields) < 8:
                continue
            name, _, version = fields[7].partition("@")
            if fields[6] == "UND":
                wanted.add((name, version.lstrip("@"), fields[3]))
            else:
                there.add(name)
    return {symbol for symbol in wanted if symbol[0] not in there}


def build(target: Path, symbols: dict[str, set[tuple[str, str]]]) -> None:
    """Makes a library with symbols by version."""
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch, "stub.c"), Path(scratch, "stub.map")
        lines, nodes = ["int kvlink_stub;"], []
        for version, entries in sorted(symbols.items()):
            for name, kind in sorted(entries):
                lines.append(f"char {name}[4096];" if kind == "OBJECT" else f"int {name}(void) {{ return {ERROR}; }}")
            names = "; ".join([name for name, _ in sorted(entries)] or ["kvlink_stub"])
            if version:
                nodes.append(f"{version} {{ global: {names}; }};")
        source.write_text("\n".join(lines))
        command = ["cc", "-shared", "-fPIC", "-fno-builtin", "-w", f"-Wl,-soname,{target.name}", "-o", str(target)]
        if nodes:
            script.write_text("\n".join(nodes))
            command.append(f"-Wl,--version-script={script}")
        subprocess.run([*command, str(source)], check=True)


def main(environment: Path) -> None:
    """Makes all libraries that torch lacks in an environment."""
    torch = next(environment.glob("lib/python3*/site-packages/torch"))
    lib = torch / "lib"
    libraries = [*lib.glob("*.so*"), *torch.glob("_C*.so")]
    names, wanted, symbols = missing(libraries, lib), versions(libraries), undefined(libraries)
    for name in sorted(names):
        own: dict[str, set[tuple[str, str]]] = {version: set() for version in wanted.get(name, {""})}
        prefix = PREFIXES.get(name.partition(".so")[0] + ".so")
        for symbol, version, kind in symbols:
            if version in own and (version or (prefix and re.match(prefix, symbol))):
                own[version].add((symbol, kind))
        build(lib / name, own)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
