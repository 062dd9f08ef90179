"""Count the rooms of the code, their floors, the arrows between them and the circles: ``python .ci/structure.py``.

A room is a package or a module directly under ``drl_dist``, each folder of ``drl_dist/jobs``, and ``datasets_prep``. An
arrow leads from a room to another one that it imports, however many times, also inside functions; imports for type
checkers alone do not count. A room's floor is one above the highest room that it imports. A circle is a set of rooms
that import one another.
"""

from __future__ import annotations

import argparse
import graphlib
import sys
from dataclasses import dataclass
from pathlib import Path

import grimp


@dataclass(frozen=True)
class Structure:
    """The rooms of a checkout and what they import."""

    arrows: dict[str, set[str]]
    """The rooms that each room imports."""

    @property
    def num_arrows(self) -> int:
        """Pairs of rooms of which the first imports the second."""
        return sum(map(len, self.arrows.values()))

    @property
    def circles(self) -> list[frozenset[str]]:
        """Sets of rooms that import one another."""
        reach = {room: self._reachable(room) for room in self.arrows}
        found = {frozenset(other for other in reach[room] if room in reach[other]) for room in self.arrows}
        return [circle for circle in found if len(circle) > 1]

    def floors(self) -> list[list[str]]:
        """Rooms by floor, the lowest first.

        Raises:
            graphlib.CycleError: there is a circle.
        """
        floor: dict[str, int] = {}
        for room in graphlib.TopologicalSorter(self.arrows).static_order():
            floor[room] = max((floor[other] + 1 for other in self.arrows[room]), default=0)
        return [sorted(room for room in floor if floor[room] == k) for k in range(max(floor.values()) + 1)]

    def _reachable(self, room: str) -> set[str]:
        seen, todo = set[str](), [room]
        while todo:
            for other in self.arrows[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen


def room_of(module: str) -> str | None:
    """The room that a module lies in; None for the package ``drl_dist`` itself."""
    parts = module.split(".")
    if parts[0] != "drl_dist":
        return parts[0]
    if parts[1:2] == ["jobs"]:
        # What a job's package sets up before Ray is imported belongs to what all jobs share.
        return ".".join(parts[1:3]) if len(parts) > 2 else "jobs.common"
    return parts[1] if len(parts) > 1 else None


def read_structure(root: Path) -> Structure:
    """The structure of the checkout at `root`."""
    sys.path.insert(0, str(root))
    graph = grimp.build_graph("drl_dist", "datasets_prep", exclude_type_checking_imports=True, cache_dir=None)
    arrows: dict[str, set[str]] = {}
    for module in graph.modules:
        if (room := room_of(module)) is None:
            continue
        others = {room_of(other) for other in graph.find_modules_directly_imported_by(module)} - {room, None}
        arrows.setdefault(room, set()).update(other for other in others if other is not None)
    return Structure(arrows)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[1], help="checkout")
    structure = read_structure(parser.parse_args().root.resolve())
    circles = structure.circles
    if not circles:
        for number, rooms in enumerate(structure.floors()):
            print(f"floor {number}: {', '.join(rooms)}")
    for circle in circles:
        print(f"circle: {', '.join(sorted(circle))}")
    num_floors = "-" if circles else len(structure.floors())
    print(f"rooms {len(structure.arrows)}, floors {num_floors}, arrows {structure.num_arrows}, circles {len(circles)}")
    return int(bool(circles))


if __name__ == "__main__":
    sys.exit(main())
