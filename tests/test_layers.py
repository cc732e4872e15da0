"""Imports go one way, and nobody writes what has its one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RANKS = {
    "errors": 0, "hashing": 0, "seeding": 0, "device": 0, "types": 0, "files": 0, "progress": 0,
    "language": 0, "chat": 0, "dialogue": 0, "leaks": 1, "spend": 1, "config": 1, "artifacts": 1, "stats": 1,
    "perturb": 1, "domain": 1,
    "metrics": 1, "triggers": 1, "checkpoint": 2, "context": 3, "augment": 1, "data": 2, "models": 2, "train": 4,
    "features": 4, "trainable": 4, "evasion": 4, "adapt": 5,
    "filtering": 1, "federation": 4, "federated": 4, "llm": 4, "agents": 5,
    "record": 2, "score": 5, "registry": 3, "store": 4, "kinds": 6, "plan": 7, "run": 8, "estimate": 8, "compare": 8,
    "report": 8, "export": 8, "flower": 8, "cli": 9,
}  # fmt: skip


def python_files(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of modules imported anywhere in a file, also inside functions."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            out |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return out


def type_checking_only(path: Path) -> set[str]:
    """Names imported under `if TYPE_CHECKING`, which cost nothing at run time."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for sub in ast.walk(node):
                if isinstance(sub, ast.ImportFrom) and sub.module:
                    out |= {f"{sub.module}.{alias.name}" for alias in sub.names} | {sub.module}
    return out


def module_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "redteam" and len(parts) > 1 and parts[1] in RANKS else None


@pytest.mark.parametrize("path", python_files("redteam"), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_imports_only_what_lies_below(path):
    own = path.relative_to(ROOT / "redteam").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in RANKS, f"give {own} a rank in this test"
    for name in imports(path) - type_checking_only(path):
        other = module_of(name)
        if other and other != own:
            assert RANKS[other] <= RANKS[own], (
                f"{own} (rank {RANKS[own]}) imports {name} (rank {RANKS[other]})"
            )
        outside = name.split(".")[0]
        assert outside not in ("attacks", "defenses", "audits"), f"the core names {name}"
        assert outside != "leaderboards" or own == "cli", f"{own} imports {name}"


@pytest.mark.parametrize("folder", ["attacks", "defenses", "audits"])
def test_plugins_do_not_import_each_other(folder):
    for path in python_files(folder):
        own = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        for name in imports(path):
            parts = name.split(".")
            if parts[0] in ("attacks", "defenses", "audits", "leaderboards"):
                assert parts[0] == folder and (len(parts) == 1 or parts[1] in ("_shared", own)), (
                    f"{path}: {name}"
                )


def test_leaderboards_read_records_and_run_nothing():
    allowed = {"record", "stats", "files", "errors", "hashing"}
    for path in python_files("leaderboards"):
        for name in imports(path):
            parts = name.split(".")
            assert parts[0] not in ("attacks", "defenses", "audits", "torch"), f"{path}: {name}"
            if parts[0] == "redteam" and len(parts) > 1:
                assert parts[1] in allowed, f"{path}: {name}"


def test_the_one_training_loop():
    """`for epoch` stands in redteam/train.py alone, and so does a call of `backward`."""
    for path in python_files("redteam", "attacks", "defenses", "audits"):
        if path == ROOT / "redteam" / "train.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            loop = (
                isinstance(node, ast.For) and isinstance(node.target, ast.Name) and node.target.id == "epoch"
            )
            call = isinstance(node, ast.Attribute) and node.attr == "backward"
            assert not loop and not call, f"{path}:{node.lineno}"


def test_no_pickle_no_global_seed_no_cuda_call_no_broad_except():
    banned = {"manual_seed": "redteam/seeding.py", "set_num_threads": "redteam/device.py", "cuda": None}
    for path in python_files("redteam", "attacks", "defenses", "audits", "leaderboards"):
        where = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                # CIFAR-100's coarse labels exist only as a pickle: md5-checked, array types alone.
                assert "pickle" not in names or where == "redteam/data/torchvision_files.py", where
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in banned
            ):
                assert banned[node.func.attr] == where, f"{where}:{node.lineno} {node.func.attr}"
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
                assert not broad or where == "redteam/run.py", f"{where}:{node.lineno}"


def test_files_and_functions_stay_small():
    for path in python_files("redteam", "attacks", "defenses", "audits", "leaderboards"):
        text = path.read_text()
        assert text.count("\n") <= 350, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno} {node.name}"


@pytest.mark.parametrize("command", [["--help"], ["list"], ["attack", "--help"], ["leaderboard", "--help"]])
def test_help_and_list_import_nothing_heavy(command):
    code = (
        "import sys\nfrom redteam.cli import main\n"
        f"try: main({command!r})\nexcept SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'jax', 'numpy', 'pandas', 'scipy', 'sklearn', 'pydantic'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []")
    assert "flip" in done.stdout or command != ["list"]
