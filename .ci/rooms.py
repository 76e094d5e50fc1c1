#!/usr/bin/env python3
"""Print the rooms of each package and the imports between them; fail where a bound is broken.

A room is a folder of a package or a module at its root. An arrow is a pair of rooms of which one imports the other.
Bounds: modules in a folder, rooms and arrows of a package, no circle of imports between modules or between rooms.
Only the standard library is used: it runs before anything is installed.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
MOST_MODULES: Final = 16
# Package: most rooms, most arrows between them.
BOUNDS: Final = {"index": (11, 33), "training": (20, 70), "service": (20, 80)}
FOLDERS: Final = ("bench", "cli", "demo", "index", "service", "tests", "training")

Graph = Mapping[str, set[str]]


def modules(package: str) -> dict[str, Path]:
    """Dotted name and path of every module of a package; the files `__init__.py` are left out."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files if file.stem != "__init__"}


def imports(file: Path) -> Iterator[str]:
    """Every dotted name that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room_of(module: str) -> str:
    """The folder below the package, or the module itself where it lies at the package's root."""
    return ".".join(module.split(".")[:2])


def import_graph(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which module of a package imports which others of it."""
    return {module: {name for name in imports(file) if name in found} - {module} for module, file in found.items()}


def between_rooms(graph: Graph) -> dict[str, set[str]]:
    """The same between rooms."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for module, imported in graph.items():
        arrows[room_of(module)] |= {room_of(name) for name in imported} - {room_of(module)}
    return arrows


def circle(graph: Graph) -> list[str]:
    """One circle of a graph, empty where there is none."""
    done: set[str] = set()

    def follow(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            found = follow(target, [*path, node])
            if found:
                return found
        done.add(node)
        return []

    for node in sorted(graph):
        found = follow(node, [])
        if found:
            return found
    return []


def crowded_folders(tops: Iterable[str]) -> Iterator[str]:
    """One line for every folder that holds too many modules."""
    for top in tops:
        counted: dict[Path, int] = defaultdict(int)
        for file in (ROOT / top).rglob("*.py"):
            if not any(part.startswith(".") for part in file.relative_to(ROOT).parts):  # not the benches' environments
                counted[file.parent] += file.stem != "__init__"
        for folder, number in sorted(counted.items()):
            if number > MOST_MODULES:
                yield f"{folder.relative_to(ROOT)} has {number} modules; at most {MOST_MODULES} are allowed"


def main() -> int:
    """Print a line for each package; 1 where a bound is broken."""
    faults = list(crowded_folders(FOLDERS))
    for package, (most_rooms, most_arrows) in BOUNDS.items():
        graph = import_graph(modules(package))
        arrows = between_rooms(graph)
        rooms, count = len({room_of(module) for module in graph}), sum(len(targets) for targets in arrows.values())
        largest = max(sum(room_of(module) == room for module in graph) for room in arrows)
        sys.stdout.write(
            f"{package}: {len(graph)} modules in {rooms} rooms (at most {most_rooms}), {count} arrows between rooms "
            f"(at most {most_arrows}), {largest} modules in the largest room\n"
        )
        if rooms > most_rooms or count > most_arrows:
            faults.append(f"{package} has {rooms} rooms and {count} arrows; at most {most_rooms} and {most_arrows}")
        for what, of in (("modules", graph), ("rooms", arrows)):
            if found := circle(of):
                faults.append(f"{package} has a circle of {what}: {' → '.join(found)}")
    for fault in faults:
        sys.stderr.write(f"error: {fault}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
