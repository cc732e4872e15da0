"""Rooms, arrows between them, floors and lines of a checkout: `python -m scripts.measure_house [ROOT]`.

A room is `attacks`, `defenses`, `leaderboards`, each `redteam/threats/T`, and each other folder or flat file of
`redteam`. An arrow is a pair of rooms with an import at run time, a floor a step of the longest chain of arrows.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

SUITE = ("redteam", "attacks", "defenses", "audits", "leaderboards")


def tracked(root: Path, ending: str) -> list[str]:
    """Files that git knows of."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", f"*{ending}"], capture_output=True, text=True
    )
    return listed.stdout.split()


def room(module: str) -> str:
    """The room of a module."""
    top, *inner = module.split(".")
    if top != "redteam" or not inner or inner == ["threats"]:
        return top
    return "/".join(inner[:2]) if inner[0] == "threats" else inner[0]


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules that a file imports at run time, also inside functions."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found.update(inside or {node.module})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found & known


def main(root: Path) -> None:
    """Print the counts."""
    python = tracked(root, ".py")
    files = [f for f in python if f.split("/")[0] in SUITE]
    names = {f.removesuffix(".py").removesuffix("/__init__").replace("/", "."): root / f for f in files}
    arrows: dict[str, set[str]] = defaultdict(set)
    for module, path in names.items():
        others = {room(other) for other in imports(path, set(names))}
        arrows[room(module)] |= others - {room(module), "redteam"}
    arrows.pop("redteam", None)

    @cache
    def floors(name: str) -> int:
        return 1 + max((floors(other) for other in arrows[name]), default=0)

    pairs = sum(map(len, arrows.values()))
    print(f"rooms {len(arrows)}, arrows {pairs}, floors {max(floors(name) for name in list(arrows))}")
    kinds = {
        "product": files,
        "templates": tracked(root, ".j2"),
        "tests": [f for f in python if f.startswith("tests/")],
    }
    for kind, these in kinds.items():
        print(
            f"{kind}: {sum((root / f).read_text().count(chr(10)) for f in these)} lines in {len(these)} files"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
