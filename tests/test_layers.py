"""Imports go one way, and nobody writes what has its one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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


def test_the_one_training_loop():
    """`for epoch` stands in redteam/learn/train.py alone, and so does a call of `backward`."""
    for path in python_files("redteam", "attacks", "defenses", "audits"):
        if path == ROOT / "redteam" / "learn" / "train.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            loop = (
                isinstance(node, ast.For) and isinstance(node.target, ast.Name) and node.target.id == "epoch"
            )
            call = isinstance(node, ast.Attribute) and node.attr == "backward"
            assert not loop and not call, f"{path}:{node.lineno}"


def test_no_pickle_no_global_seed_no_cuda_call_no_broad_except():
    banned = {
        "manual_seed": "redteam/core/seeding.py",
        "set_num_threads": "redteam/core/device.py",
        "cuda": None,
    }
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
                assert not broad or where == "redteam/core/run.py", f"{where}:{node.lineno}"


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
