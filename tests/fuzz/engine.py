"""A small coverage-guided fuzzer: mutated bytes into parsers; what reaches new code is mutated further.

Owns the instrumentation (an import hook that has each branch of the chosen modules note that it was taken),
the mutations and the loop. Must never be imported by what it tests, nor let a failure go: whatever is not an
expected error, does not end in time or takes more memory than its input explains is a :class:`Failure` with
the input that caused it.

Why our own: atheris, the maintained fuzzer for Python, has no build of its present version for Python 3.11
and none for other machines than x86-64, and would be the largest part of a set-up. A branch that is noted by
the code itself costs a few ten nanoseconds, so this makes some ten thousand runs a second. One seed and one
number of runs give the same history; a time limit ends it somewhere.
"""

from __future__ import annotations

import ast
import base64
import importlib.abc
import importlib.machinery
import importlib.util
import random
import signal
import sys
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

RUN_LIMIT_S = 2.0  # of CPU, for one input; the slowest takes a few milliseconds
MEMORY_EVERY = 50  # runs between two whose memory is measured; and each input that is kept
CORPUS_MAX = 4000
PREFIX = "_fuzz_"

hits: set[int] = set()  # branches taken since it was cleared
constants: set[bytes] = set()  # of the modules under test, as they may stand in an input
_branches = 0


def _number() -> int:
    global _branches
    _branches += 1
    return _branches


def _outcome(branch: int, value: Any) -> Any:
    hits.add(-branch if value else branch + (1 << 32))
    return value


class _Instrument(ast.NodeTransformer):
    """A note at the beginning of each body, and around each operand that decides."""

    def _body(self, body: list[ast.stmt]) -> list[ast.stmt]:
        call = ast.Call(ast.Name(PREFIX + "hit", ast.Load()), [ast.Constant(_number())], [])
        note: ast.stmt = ast.Expr(call)
        at = 1 if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else 0
        return [*body[:at], note, *body[at:]]

    def _decides(self, node: ast.expr) -> ast.expr:
        return ast.Call(ast.Name(PREFIX + "outcome", ast.Load()), [ast.Constant(_number()), node], [])

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ExceptHandler | ast.match_case):
            node.body = self._body(node.body)
        elif isinstance(node, ast.If | ast.For | ast.While | ast.AsyncFor):
            node.body, node.orelse = self._body(node.body), self._body(node.orelse)
        elif isinstance(node, ast.Try):
            node.orelse = self._body(node.orelse)
        elif isinstance(node, ast.BoolOp):
            node.values = [self._decides(each) for each in node.values]
        elif isinstance(node, ast.IfExp):
            node.test = self._decides(node.test)
        elif isinstance(node, ast.comprehension):
            node.ifs = [self._decides(each) for each in node.ifs]
        return node

    def visit_Try(self, node: ast.Try) -> ast.AST:
        has_orelse = bool(node.orelse)
        found = self.generic_visit(node)
        if not has_orelse:
            node.orelse = []  # Python refuses an else without a handler
        return found


def _collect(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and 0 < len(value) <= 20:
            constants.add(value.encode())
        elif isinstance(value, bytes) and 0 < len(value) <= 20:
            constants.add(value)
        elif isinstance(value, int) and value > 255:
            for size in (2, 4, 8):
                if value < 1 << 8 * size:
                    constants.update((value.to_bytes(size, "little"), value.to_bytes(size, "big")))


class Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Install before the modules are imported: ``sys.meta_path.insert(0, Hook({"moorage.wire.frame"}))``."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = frozenset(modules)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is None or found.origin is None:
            return None
        return importlib.util.spec_from_file_location(name, found.origin, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text(), module.__file__)
        _collect(tree)
        tree = ast.fix_missing_locations(_Instrument().visit(tree))
        module.__dict__[PREFIX + "hit"] = hits.add
        module.__dict__[PREFIX + "outcome"] = _outcome
        exec(compile(tree, module.__file__, "exec"), module.__dict__)


# -- mutations ------------------------------------------------------------------------------------------

_INTERESTING = sorted({0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 127, 128, 255, 256, 511, 512, 1000, 1023, 1024})
_POWERS = [1 << bit for bit in range(64)]


def _value(rng: random.Random, size: int) -> int:
    match rng.randrange(4):
        case 0:
            value = rng.choice(_INTERESTING)
        case 1:
            value = rng.choice(_POWERS) + rng.choice((-1, 0, 1))
        case 2:
            value = -rng.choice(_INTERESTING)
        case _:
            value = rng.getrandbits(8 * size)
    return value & ((1 << 8 * size) - 1)


def _flip(data: bytearray, rng: random.Random, words: Sequence[bytes], other: bytes) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: random.Random, words: Sequence[bytes], other: bytes) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _integer(data: bytearray, rng: random.Random, words: Sequence[bytes], other: bytes) -> None:
    """A field becomes another number, or a little more or less, or a length."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return
    at, order = rng.randrange(len(data) - size + 1), rng.choice(("little", "big"))
    value = _value(rng, size)
    if rng.randrange(3) == 0:
        value = int.from_bytes(data[at : at + size], order) + rng.randint(-16, 16)  # type: ignore[arg-type]
    elif rng.randrange(6) == 0:
        value = len(data) - at + rng.randint(-9, 9)
    data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)  # type: ignore[arg-type]


def _delete(data: bytearray, rng: random.Random, words: Sequence[bytes], other: bytes) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 1, 2, 4, 8, 40, len(data)))]


def _repeat(data: bytearray, rng: random.Random, words: Sequence[bytes], other: bytes) -> None:
    at = rng.randrange(len(data) + 1)
    part = data[at : at + rng.choice((1, 2, 4, 8, 48, 64, 512))]
    data[at:at] = part * rng.choice((1, 1, 1, 2, 30))


def _insert(data: bytearray, rng: random.Random, words: Sequence[bytes], other: bytes) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 8, 16)))


def _word(data: bytearray, rng: random.Random, words: Sequence[bytes], other: bytes) -> None:
    word = rng.choice(words)
    at = rng.randrange(len(data) + 1)
    data[at : at + (len(word) if rng.randrange(2) else 0)] = word


def _splice(data: bytearray, rng: random.Random, words: Sequence[bytes], other: bytes) -> None:
    at, begin = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    part = other[begin : begin + rng.choice((4, 8, 40, 64, 512, len(other)))]
    data[at : at + (len(part) if rng.randrange(2) else 0)] = part


_MUTATIONS = (_flip, _byte, _integer, _integer, _integer, _delete, _repeat, _insert, _word, _word, _splice)


def mutate(
    data: bytes, rng: random.Random, words: Sequence[bytes], other: bytes, size_max: int = 1 << 16
) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 9))):
        rng.choice(_MUTATIONS)(changed, rng, words, other)
    return bytes(changed[:size_max])


# -- the loop -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """``run`` takes any bytes and returns, or raises one of ``expected``. ``memory(size)``: bytes that it may
    have at once for an input of that size."""

    name: str
    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    expected: tuple[type[BaseException], ...]
    unexpected: tuple[type[BaseException], ...] = ()  # of the expected ones
    memory: Callable[[int], int] = lambda size: (256 << 10) + 64 * size
    size_max: int = 4096


class Failure(Exception):
    def __init__(self, target: Target, data: bytes, what: str) -> None:
        shown = base64.b85encode(zlib.compress(data, 9)).decode()
        super().__init__(f"{target.name}: {what}\ninput ({len(data)} bytes; zlib, base85): {shown}")
        self.data = data


class Hang(BaseException):
    """No handler of the code under test may take it for an error of its own."""


@dataclass
class Result:
    target: str
    runs: int = 0
    seconds: float = 0.0
    corpus: list[bytes] = field(default_factory=list)
    edges: set[int] = field(default_factory=set)

    def __str__(self) -> str:
        speed = self.runs / self.seconds if self.seconds else 0
        return (
            f"{self.target:18} {self.runs:9} runs {speed:9.0f}/s   corpus {len(self.corpus):5}"
            f"   edges {len(self.edges):5}"
        )


def run_once(target: Target, data: bytes) -> None:
    """Raises :class:`Failure`."""
    signal.setitimer(signal.ITIMER_PROF, RUN_LIMIT_S)  # of CPU: others may be busy
    try:
        target.run(data)
    except Hang:
        raise Failure(target, data, f"no end after {RUN_LIMIT_S} s:\n{traceback.format_exc()}") from None
    except target.unexpected:
        raise Failure(target, data, traceback.format_exc()) from None
    except target.expected:
        pass
    except Exception:
        raise Failure(target, data, traceback.format_exc()) from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def measure(target: Target, data: bytes) -> None:
    """As :func:`run_once`, with an eye on memory; what is taken once (an import, say) does not count."""
    peak = _peak(target, data)
    if peak > target.memory(len(data)):
        peak = _peak(target, data)
    if peak > target.memory(len(data)):
        raise Failure(target, data, f"{peak} bytes of memory, at most {target.memory(len(data))} are right")


def _peak(target: Target, data: bytes) -> int:
    tracemalloc.start()
    try:
        run_once(target, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _alarm(_signal: int, _frame: object) -> None:
    raise Hang


def fuzz(target: Target, seconds: float, seed: int, runs_max: int = 1 << 60) -> Result:
    """Raises the first :class:`Failure`."""
    signal.signal(signal.SIGPROF, _alarm)
    rng = random.Random(f"{target.name} {seed}")
    words = sorted(constants) or [b"\0"]
    result = Result(target.name)
    began = time.monotonic()
    for data in _inputs(target, rng, words, result):
        hits.clear()
        run_once(target, data)
        result.runs += 1
        fresh = not hits <= result.edges
        if fresh:
            result.edges |= hits
            if len(result.corpus) < CORPUS_MAX:
                result.corpus.append(data)
        if fresh or result.runs % MEMORY_EVERY == 0:
            measure(target, data)
        result.seconds = time.monotonic() - began
        if result.runs >= runs_max or (result.seconds >= seconds and result.runs >= len(target.seeds)):
            break
    return result


def _inputs(target: Target, rng: random.Random, words: Sequence[bytes], result: Result) -> Iterator[bytes]:
    yield from target.seeds
    corpus = result.corpus
    if not corpus:
        corpus.append(b"")
    while True:
        # Half of the time one of the newest: what it reached is what is least known.
        newest = max(0, len(corpus) - 10)
        at = rng.randrange(newest, len(corpus)) if rng.randrange(2) else rng.randrange(len(corpus))
        yield mutate(corpus[at], rng, words, rng.choice(corpus), target.size_max)


def install(modules: Sequence[str]) -> None:
    loaded = sorted(name for name in modules if name in sys.modules)
    assert not loaded, f"imported already, cannot be instrumented: {loaded}"
    sys.meta_path.insert(0, Hook(modules))
