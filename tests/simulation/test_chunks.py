"""The size of a chunk that a history draws reaches every module that has it."""

from __future__ import annotations

import ast
import gc
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

from moorage.quorum import record
from moorage.simulation.chunks import SIZES, chunk_patches

ROOT = Path(__file__).parents[2]
ROOMS = (
    "cli",
    "client",
    "gateway",
    "metadata",
    "node",
    "quorum",
    "registry",
    "service",
    "simulation",
    "wire",
)
FIRST = {("moorage.quorum.record", "CHUNK_SIZE")}

Name = tuple[str, str]  # module, name in it


class _Module:
    """What a module binds when it is imported."""

    def __init__(self, path: Path) -> None:
        self.name = "moorage." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        self.imported: dict[str, Name] = {}
        self.assigned: dict[str, ast.expr] = {}
        self.defaults: list[ast.expr] = []  # of functions and classes: kept where no patch reaches them
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for each in node.names:
                    self.imported[each.asname or each.name] = (node.module, each.name)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                self.defaults += [*node.args.defaults, *(each for each in node.args.kw_defaults if each)]
            elif isinstance(node, ast.ClassDef):
                fields = [each for each in node.body if isinstance(each, ast.Assign | ast.AnnAssign)]
                self.defaults += [each.value for each in fields if each.value]
        for node in tree.body:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self.assigned |= {name: node.value for name in _names(target)}
            elif isinstance(node, ast.AnnAssign) and node.value:
                self.assigned |= {name: node.value for name in _names(node.target)}

    def means(self, expression: ast.expr, known: set[Name]) -> bool:
        """Whether one of ``known`` is in it."""
        for node in ast.walk(expression):
            if isinstance(node, ast.Name):
                if {(self.name, node.id), self.imported.get(node.id)} & known:
                    return True
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                package, module = self.imported.get(node.value.id, ("", ""))
                if (f"{package}.{module}", node.attr) in known:
                    return True
        return False

    def having(self, known: set[Name]) -> set[Name]:
        found = {name for name, source in self.imported.items() if source in known}
        found |= {name for name, expression in self.assigned.items() if self.means(expression, known)}
        return {(self.name, name) for name in found}


def _names(target: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]


@cache
def _modules() -> list[_Module]:
    # CPython 3.11 loses count of its depth when a collection in the middle of a parse runs Python code
    # (https://github.com/python/cpython/issues/106905), as that of a forgotten coroutine does.
    gc.collect()
    gc.disable()
    try:
        return [_Module(path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    finally:
        gc.enable()


def test_no_module_keeps_the_size_that_it_was_imported_with() -> None:
    modules, known = _modules(), set(FIRST)
    while found := {name for module in modules for name in module.having(known)} - known:
        known |= found
    assert {(target.__name__, name) for target, name, _ in chunk_patches(SIZES[0])} == known
    assert len({module for module, _ in known}) > 8
    kept = [module.name for module in modules if any(module.means(each, known) for each in module.defaults)]
    assert not kept, "the size is in a default, which no patch reaches"


@pytest.mark.parametrize("size", SIZES)
def test_what_follows_from_the_size_is_as_the_modules_say(size: int) -> None:
    assigned = {module.name: module.assigned for module in _modules()}
    with ExitStack() as stack:
        for target, name, value in chunk_patches(size):
            stack.enter_context(patch.object(target, name, value))
        for target, name, value in chunk_patches(size):
            expression = assigned[target.__name__].get(name)
            if expression is not None and (target.__name__, name) not in FIRST:
                code = compile(ast.Expression(expression), target.__name__, "eval")
                assert eval(code, vars(target)) == value, f"{target.__name__}.{name}"


def test_the_real_size_is_among_them_and_changes_nothing() -> None:
    assert record.CHUNK_SIZE in SIZES
    for target, name, value in chunk_patches(record.CHUNK_SIZE):
        assert getattr(target, name) == value, f"{target.__name__}.{name}"
