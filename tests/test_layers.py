"""Imports go one way, and nobody writes what has its one place.

The import rule is read from the imports themselves; no table ranks the rooms.

- `redteam.core` imports nothing of the suite above it.
- The middle (`learn`, `llm`, `data`, `report`, ...) imports `core` and, without a circle, each other.
- A threat imports those and never another threat; a plug-in imports its own threat and below.
- `cli`, `integrations` and `redteam.testing` reach threats and plug-ins through the registry.
- `leaderboards` reads records: of the suite it imports what says what a record is.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = ("attacks", "defenses", "audits")
SUITE = ("redteam", *PLUGINS, "leaderboards")
MIDDLE = ("learn", "llm", "diffusion", "data", "report")
OUTER = ("cli", "integrations", "testing")
# What leaderboards may ask the core: what a record says, and which boards there are.
OF_RECORDS = {f"redteam.core.{m}" for m in ("record", "stats", "files", "errors", "hashing", "threat")}
HEAVY = {"torch", "jax", "numpy", "pandas", "scipy", "sklearn", "pydantic"}
# Who updates a victim's parameters in a loop, and why `learn.train.fit` cannot do it for him.
LOOPS = {
    "redteam/learn/train.py": "the one training loop: attacks and defences hand it data, a loss or a hook",
    "redteam/threats/evasion/adapt/loop.py": "domain adaptation alternates updates of a critic and a model",
    "redteam/threats/poisoning/federation/local.py": "all clients of a round train side by side, as functions",
}
GRADIENT = r"\b(backward|grad|grad_and_value|vjp|jvp|jacrev|jacfwd) \("
PARAMETERS = (
    r"\b(parameters|named_parameters|param_groups|functional_call|stack_module_state|params|weights)\b"
)
# An optimizer's step, arithmetic in place, or `p - rate * slope`.
STEP = r"\. step \(( \w+)? \)|\b(_foreach_)?(add|sub|copy|lerp|addc\w+)_ \(|-=|- [\w. ]+ \* "


def python_files(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


@cache
def modules() -> dict[str, Path]:
    """Every module of the suite by its dotted name; a package is its `__init__`."""
    names = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in python_files(*SUITE)}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


@cache
def imports(path: Path, *, at_load: bool = False) -> frozenset[str]:
    """Modules of the suite that a file names.

    They count inside functions too, for types alone, and in strings that a lazy import reads, such as
    "redteam.llm.gguf:open"; a name of two parts is a group of entry points. at_load: only what importing it imports.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.If(test=ast.Name("TYPE_CHECKING")) if (
                at_load
            ):
                return
            case ast.Import():
                found.update(alias.name for alias in node.names)
            case ast.ImportFrom():
                assert not node.level, f"{path}:{node.lineno} a relative import hides its room"
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & modules().keys()
                found.update(inside or {str(node.module)})
            case ast.Constant(value=str(text)) if not at_load and text.count(".") > 1:
                found.add(text.partition(":")[0])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return frozenset(found & modules().keys())


def room(module: str) -> tuple[str, ...]:
    """`("core",)`, `("threats", "poisoning")`, `("attacks", "poisoning")`; `("redteam",)` is the package itself."""
    parts = module.removeprefix("redteam.").split(".")
    return tuple(parts[:2]) if parts[0] in ("threats", *PLUGINS) else (parts[0],)


def allowed(module: str, other: str) -> bool:
    """Whether one module may import another."""
    own, its = room(module), room(other)
    if its in (own, (own[0],), ("redteam",)):
        return True
    match own:
        case ("core",):
            return False
        case ("leaderboards",):
            return other in OF_RECORDS
        case ("redteam",) | ("cli",) | ("integrations",) | ("testing",):
            return its[0] in ("core", *MIDDLE, *OUTER) or (own == ("cli",) and its == ("leaderboards",))
        case ("attacks" | "defenses" | "audits", threat):
            return its[0] in ("core", *MIDDLE) or its == ("threats", threat)
        case _:
            return its[0] in ("core", *MIDDLE) and own[0] in ("threats", *MIDDLE)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_its_room_may(module):
    assert not [other for other in sorted(imports(modules()[module])) if not allowed(module, other)]


@pytest.mark.parametrize(
    ("module", "other", "may"),
    [
        ("redteam.core.run", "redteam.data.access", False),
        ("redteam.learn.train", "redteam.threats.poisoning.nouns", False),
        ("redteam.threats.strings.scorer", "redteam.threats.moderation.metrics", False),
        ("redteam.threats.poisoning.target", "redteam.threats.poisoning.federation.rounds", True),
        ("attacks.strings.gcq", "redteam.threats.strings.artifact", True),
        ("attacks.strings.gcq", "redteam.threats.moderation.artifact", False),
        ("attacks.strings.gcq", "defenses.strings.smoothing", False),
        ("redteam.cli.show", "attacks.strings.gcq", False),
        ("leaderboards.table", "redteam.core.run", False),
        ("redteam.somewhere", "redteam.data", False),
    ],
)
def test_the_rule_itself(module, other, may):
    assert allowed(module, other) is may


def test_no_import_hides(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "if TYPE_CHECKING:\n    from redteam.core import run\n"
        "def f():\n    import redteam.learn.train\n"
        "LAZY = 'redteam.llm.gguf:find'\nfrom redteam.data.nouns import ImageSet\n"
    )
    later = {"redteam.core.run", "redteam.learn.train", "redteam.llm.gguf"}
    assert imports(path) == later | {"redteam.data.nouns"}
    assert imports(path, at_load=True) == {"redteam.data.nouns"}


def circle(edges: dict[str, set[str]]) -> str:
    """The first circle found in a graph, or nothing."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> str:
        if node in path:
            return " -> ".join([*path[path.index(node) :], node])
        if node in done:
            return ""
        done.add(node)
        return next(filter(None, (walk(other, [*path, node]) for other in sorted(edges.get(node, ())))), "")

    return next(filter(None, (walk(node, []) for node in sorted(edges))), "")


def test_no_circle_of_rooms_and_none_of_modules():
    rooms: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for module, path in modules().items():
        own = "/".join(room(module))
        rooms.setdefault(own, set()).update({"/".join(room(o)) for o in imports(path)} - {own, "redteam"})
        # A package's own __init__ gathers what lies in it.
        files[module] = {o for o in imports(path, at_load=True) if not module.startswith(f"{o}.")}
    assert not circle(rooms)
    assert not circle(files)
    assert circle({"a": {"b"}, "b": {"c", "d"}, "d": {"a"}}) == "a -> b -> d -> a"


def test_plugins_share_only_what_is_named_with_an_underscore():
    for module, path in modules().items():
        package = module.split(".")[:3]
        for other in imports(path) if package[0] in PLUGINS else ():
            parts = other.split(".")
            if parts[0] == package[0] and len(parts) > 2 and parts[:3] != package:
                assert parts[2].startswith("_"), f"{module} imports the plug-in {other}"


def updates_parameters(source: str) -> bool:
    """Whether a module takes gradients, holds a network's parameters, and steps.

    A gradient of images or labels holds no parameters; one that only reads parameters does not step.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = " ".join(t.string for t in tokens if t.type not in (tokenize.STRING, tokenize.COMMENT))
    return all(re.search(pattern, code) for pattern in (GRADIENT, PARAMETERS, STEP))


def test_three_places_update_a_victims_parameters():
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in python_files(*SUITE)}
    assert {where for where, source in files.items() if updates_parameters(source)} == set(LOOPS)


@pytest.mark.parametrize(
    ("source", "updates"),
    [
        ("for x in xs:\n    loss(net(x)).backward()\n    Adam(net.parameters()).step()", True),
        ("for p, g in zip(net.parameters(), torch.autograd.grad(loss, ps)): p -= rate * g", True),
        ("for p, g in zip(net.parameters(), torch.autograd.grad(loss, ps)): p.data.sub_(g)", True),
        ("while True: params = {k: p - rate * grad(loss)(params, x)[k] for k, p in params.items()}", True),
        ("for x in xs: p = p - rate * vjp(lambda p: functional_call(net, p, x), p)[1](x)", True),
        ("for _ in range(9): x = x - size * torch.autograd.grad(loss(net(x)), x)[0].sign()", False),
        ("for _ in range(9):\n    loss(net(image + delta)).backward()\n    Adam([delta]).step()", False),
        ("for x in xs: state.step(rows, grad(functional_call(net, params, x)), config)", False),
        ("def slopes(params): return torch.autograd.grad(loss(params), [*params.values()])", False),
    ],
)
def test_a_loop_that_updates_parameters_is_found(source, updates):
    assert updates_parameters(source) is updates


def test_no_pickle_no_global_seed_no_cuda_call_no_broad_except():
    banned = {
        "manual_seed": "redteam/core/seeding.py",
        "set_num_threads": "redteam/core/device.py",
        "cuda": None,
    }
    for path in python_files(*SUITE):
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
                # A cell's failure becomes a record; a user's file may raise anything while it is imported.
                places = ("redteam/core/run.py", "redteam/core/pyfile.py")
                assert not broad or where in places, f"{where}:{node.lineno}"


def test_files_and_functions_stay_small():
    for path in python_files(*SUITE):
        text = path.read_text()
        assert text.count("\n") <= 350, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno} {node.name}"


def loads(code: str) -> tuple[set[str], str]:
    """The heavy packages that running code in a fresh interpreter loads, and what it prints."""
    code += f"\nimport sys; print('\\nHEAVY', *sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    printed, _, heavy = done.stdout.rpartition("HEAVY")
    return set(heavy.split()), printed


@pytest.mark.parametrize("command", [["--help"], ["list"], ["attack", "--help"], ["leaderboard", "--help"]])
def test_help_and_list_import_nothing_heavy(command):
    heavy, printed = loads(
        "from redteam.cli import main\n"
        f"try: main({command!r})\nexcept SystemExit as e: assert not e.code, e.code"
    )
    assert not heavy
    assert "flip" in printed or command != ["list"]


def test_every_room_of_a_threat_opens_without_anything_heavy():
    rooms = [p for p in (ROOT / "redteam/threats").iterdir() if p.is_dir() and not p.name.startswith("_")]
    assert not [p.name for p in rooms if not (p / "__init__.py").is_file()]
    heavy, _ = loads("\n".join(f"import redteam.threats.{p.name}" for p in rooms))
    assert not heavy
