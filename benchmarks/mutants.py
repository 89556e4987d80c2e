"""Mutation testing: small faults put into engine/, attr/ and metrics/ one at a time, and whether a test fails.

``python -m benchmarks.mutants --count 400`` takes a seeded sample of all mutants, runs each against the tests that
cover its line, and prints the share that dies and each survivor. ``--again`` runs the survivors of the last run once
more. Nothing is written into the package: a child process, forked where PyTorch is loaded already, compiles the
mutant in place of its module. Processes that a test starts therefore run the module as it is.

Not mutated: annotations, docstrings and other strings, what ``raise`` raises and names that are used there alone,
``strict`` of ``zip``, and Captum's count of calls.
"""

from __future__ import annotations

import ast
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Annotated, Any

import pytest
import typer

from benchmarks.machine import markdown

ROOT = Path(__file__).parents[1]
RUNS = Path(__file__).parent / "runs"
PACKAGE = "captum_unioncam"
WINGS = [f"{PACKAGE}/{wing}" for wing in ("engine", "attr", "metrics")]
TESTS = ["tests/engine", "tests/attr", "tests/metrics", "tests/test_testing.py"]
# Loaded once, and not again for each mutant.
PRELOADED = ("torch", "captum.attr", "torchvision", "hypothesis", "numpy")

SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}


@dataclass(frozen=True)
class Mutant:
    """One fault: in ``file``, what stands from ``start`` to ``end`` is replaced.

    ``place`` is the same as long as the code of its line is. ``lines`` are those of its statement, in tests' coverage;
    of what runs on import, such as a default, the function's or None, any.
    """

    file: str
    line: int
    place: str
    start: int
    end: int
    before: str
    after: str
    lines: tuple[int, int] | None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.place, self.after

    def source(self) -> str:
        source = (ROOT / self.file).read_text()
        # As many lines as before: inspect.getsource looks for functions by their lines.
        lost = self.before.count("\n") - self.after.count("\n")
        after = f"({self.after}{chr(10) * lost})" if lost else self.after
        return source[: self.start] + after + source[self.end :]


class Mutants(ast.NodeVisitor):
    """All mutants of a file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.text = (ROOT / file).read_text()
        self.offsets = [0]
        for line in self.text.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))
        self.lines: tuple[int, int] | None = None
        self.in_messages_alone: list[set[str]] = []
        self.same: Counter[tuple[str, str]] = Counter()
        self.found: list[Mutant] = []
        self.visit(ast.parse(self.text))

    def offset(self, line: int, column: int) -> int:
        """Columns count bytes."""
        text = self.text[self.offsets[line - 1] : self.offsets[line]]
        return self.offsets[line - 1] + len(text.encode()[:column].decode())

    def span(self, node: Any) -> tuple[int, int]:
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def code(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def add(self, start: int, end: int, after: str) -> None:
        line = self.text.count("\n", 0, start) + 1
        code = self.text[self.offsets[line - 1] : self.offsets[line]]
        column = start - self.offsets[line - 1] - len(code) + len(code.lstrip())
        self.same[place := f"{column} {code.strip()}", after] += 1
        place += f" {self.same[place, after]}"
        mutant = Mutant(self.file, line, place, start, end, self.text[start:end], after, self.lines)
        try:
            compile(mutant.source(), self.file, "exec")
        except SyntaxError:
            return
        self.found.append(mutant)

    def replace(self, node: ast.AST, after: str) -> None:
        self.add(*self.span(node), after)

    def swap(self, operator: ast.AST, left: ast.AST, right: ast.AST) -> None:
        if type(operator) in SWAPS:
            before, after = SWAPS[type(operator)]
            start = self.text.index(before, self.span(left)[1], self.span(right)[0])
            self.add(start, start + len(before), after)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            outer, self.lines = self.lines, self.lines_of(node)
            super().visit(node)
            self.lines = outer
        else:
            super().visit(node)

    def lines_of(self, node: Any) -> tuple[int, int] | None:
        """A statement's, without those of the statements in it."""
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) or not self.in_messages_alone:
            return None
        inner = [
            child.lineno for child in ast.iter_child_nodes(node) if isinstance(child, (ast.stmt, ast.excepthandler))
        ]
        return node.lineno, max(node.lineno, min(inner) - 1) if inner else node.end_lineno

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if any(self.code(decorator).endswith("overload") for decorator in node.decorator_list):
            return
        of_raise = {id(x) for y in ast.walk(node) if isinstance(y, ast.Raise) for x in ast.walk(y)}
        names = [x for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)]
        in_raise, elsewhere = ({x.id for x in names if (id(x) in of_raise) == is_in} for is_in in (True, False))
        self.lines = node.body[0].lineno, node.end_lineno or 0
        for default in (*node.args.defaults, *node.args.kw_defaults, *node.decorator_list):
            if default is not None:
                self.visit(default)
        self.in_messages_alone.append(in_raise - elsewhere)
        for statement in node.body:
            self.visit(statement)
        self.in_messages_alone.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.body):
            self.visit(part)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        self.visit(node.test)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {x.id for target in node.targets for x in ast.walk(target) if isinstance(x, ast.Name)}
        if not (self.in_messages_alone and names and names <= self.in_messages_alone[-1]):
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.swap(node.op, node.target, node.value)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and self.code(node.value) != "None":
            self.replace(node.value, "None")
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self.replace(node.value, "None")
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self.replace(node, "pass")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.replace(node, "pass")

    def condition(self, test: ast.AST, *values: str) -> None:
        for value in values:
            self.replace(test, value)

    def visit_If(self, node: ast.If) -> None:
        if self.code(node.test) != "TYPE_CHECKING":
            self.condition(node.test, "True", "False")
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.condition(node.test, "False")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test, "True", "False")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test, "True")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            self.swap(operator, left, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.swap(node.op, left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.swap(node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.replace(node, f"({self.code(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.replace(node, str(not node.value))
        elif isinstance(node.value, (int, float)):
            self.replace(node, repr(node.value + 1))

    def visit_Call(self, node: ast.Call) -> None:
        function = self.code(node.func)
        if function in ("log_usage", "TypeVar"):
            return
        for keyword in node.keywords:
            if keyword.arg not in (None, "strict"):
                kept = [self.code(part) for part in (*node.args, *node.keywords) if part is not keyword]
                self.replace(node, f"{function}({', '.join(kept)})")
        self.visit(node.func)
        for part in (*node.args, *(keyword.value for keyword in node.keywords if keyword.arg != "strict")):
            self.visit(part)


class Loader(SourceFileLoader):
    """A module of other code than its file's."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds the mutant in place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.path, self.source = str(ROOT / mutant.file), mutant.source()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return spec_from_file_location(fullname, self.path, loader=Loader(fullname, self.path, self.source))


class Coverage:
    """Which lines of the package each test runs, and how long it takes; those that fail are left out."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self.paths: dict[str, str | None] = {}
        self.left: dict[int, tuple[CodeType, set[int]]] = {}

    def path(self, name: str) -> str | None:
        """Of a file in the package; None of others."""
        if name not in self.paths:
            path = os.path.relpath(name, ROOT)
            self.paths[name] = path if path.startswith(f"{PACKAGE}/") else None
        return self.paths[name]

    def trace(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        if self.path(code.co_filename) is None:
            return None
        if id(code) not in self.left:
            self.left[id(code)] = code, _lines(code)
        left = self.left[id(code)][1]
        left.discard(frame.f_lineno)
        return self.trace if left else None

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.left = {}
        self.tests[item.nodeid] = {"file": str(item.path.relative_to(ROOT)), "passed": True}
        start = time.perf_counter()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        yield
        sys.settrace(None)
        threading.settrace(None)
        seconds = time.perf_counter() - start
        of_files: dict[str, list[int]] = {}
        for code, left in self.left.values():
            of_files.setdefault(self.path(code.co_filename) or "", []).extend(_lines(code) - left)
        self.tests[item.nodeid] |= {"seconds": seconds, "lines": of_files}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.tests[report.nodeid]["passed"] = False


def _lines(code: CodeType) -> set[int]:
    return {line for _, _, line in code.co_lines() if line}


class Chosen:
    """Runs the tests of these names, in this order; notes the first that fails."""

    def __init__(self, names: list[str]) -> None:
        self.order = {name: place for place, name in enumerate(names)}
        self.failed = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda item: self.order[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def in_a_child(work: Callable[[], Any], seconds: float) -> Any:
    """What ``work`` returns in a child process; None if it dies or takes longer."""
    result = RUNS / f"mutant-{os.getpid()}.json"
    result.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        for name in [n for n in sys.modules if n.split(".")[0] == PACKAGE]:
            del sys.modules[name]
        try:
            result.write_text(json.dumps(work()))
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.02)
    return json.loads(result.read_text()) if result.exists() else None


def run_tests(files: list[str], plugin: object) -> int:
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    return int(pytest.main([*options, *files], plugins=[plugin]))


def covered(tests: list[str]) -> dict[str, dict[str, Any]]:
    """By name of the tests that pass: file, seconds, lines. Kept as long as neither package nor tests change."""
    contents = sha256()
    for path in sorted(p for folder in (PACKAGE, "tests") for p in (ROOT / folder).rglob("*.py")):
        contents.update(path.read_bytes())
    kept = RUNS / f"mutants-{contents.hexdigest()[:12]}.json"
    if not kept.exists():

        def trace() -> Any:
            coverage = Coverage()
            run_tests(tests, coverage)
            return {name: test for name, test in coverage.tests.items() if test.pop("passed")}

        found = in_a_child(trace, 3600)
        if not found:
            raise SystemExit("The tests themselves do not run.")
        kept.write_text(json.dumps(found))
    found_before: dict[str, dict[str, Any]] = json.loads(kept.read_text())
    return found_before


def judge(mutant: Mutant, tests: dict[str, dict[str, Any]], budget: float) -> dict[str, Any]:
    """Whether tests that cover the mutant's lines fail, as many as fit into ``budget`` seconds."""

    def covers(lines: list[int]) -> bool:
        first, last = mutant.lines or (1, 10**6)
        return any(first <= line <= last for line in lines)

    of_file = {name: test["lines"].get(mutant.file, []) for name, test in tests.items()}
    covering = [name for name, lines in of_file.items() if covers(lines)]
    if mutant.lines is None:
        # What runs on import, perhaps all that the file has.
        covering = covering or list(tests)
    covering.sort(key=lambda name: float(tests[name]["seconds"]))
    # At first those of one file, for it takes longer to collect all files than to run most tests.
    file = f"test_{Path(mutant.file).stem}.py"
    near = [name for name in covering if Path(tests[name]["file"]).name == file]
    near = near or [name for name in covering if tests[name]["file"] == tests[covering[0]]["file"]]
    names = _within(near, tests, min(budget, 3.0))
    result = {**asdict(mutant), "tests": len(names), "of": len(covering), "by": "", "status": "not covered"}
    if names:
        result |= _run(mutant, names, tests)
    if result["status"] == "survived":
        # Then the fastest, and those that run what few tests run of this file.
        times = Counter(line for lines in of_file.values() for line in lines)
        covering = [name for name in covering if name not in names]
        rare = sorted(covering, key=lambda name: min((times[line] for line in of_file[name]), default=0))
        names = list(dict.fromkeys(name for some in (covering, rare) for name in _within(some, tests, budget / 2)))
        result["tests"] += len(names)
        if names:
            result |= _run(mutant, names, tests)
    return result


def _within(names: list[str], tests: dict[str, dict[str, Any]], budget: float) -> list[str]:
    ends = list(accumulate(float(tests[name]["seconds"]) for name in names))
    return [name for name, end in zip(names, ends, strict=True) if name == names[0] or end <= budget]


def _run(mutant: Mutant, names: list[str], tests: dict[str, dict[str, Any]]) -> dict[str, str]:
    def work() -> Any:
        sys.meta_path.insert(0, Finder(mutant))
        chosen = Chosen(names)
        code = run_tests(["-x", *sorted({tests[name]["file"] for name in names})], chosen)
        return {"status": "survived" if code == 0 else "killed", "by": chosen.failed or f"exit code {code}"}

    found = in_a_child(work, 60 + 5 * sum(float(tests[name]["seconds"]) for name in names))
    return found or {"status": "killed", "by": "crash, or out of time"}


def sample(files: list[str], count: int, seed: int) -> list[Mutant]:
    """So many mutants, of each file in proportion to all of its own."""
    of_files = {file: Mutants(file).found for file in files}
    total = sum(map(len, of_files.values()))
    chance = random.Random(seed)
    taken = [
        mutant
        for mutants in of_files.values()
        for mutant in chance.sample(mutants, min(len(mutants), -(-count * len(mutants) // total)))
    ]
    chance.shuffle(taken)
    return taken


def report(results: list[dict[str, Any]]) -> str:
    killed = Counter(r["file"] for r in results if r["status"] == "killed")
    of = Counter(r["file"] for r in results)
    rows = [(file, killed[file], of[file]) for file in sorted(of)] + [("all", killed.total(), of.total())]
    table = [{"file": f, "mutants": str(n), "killed": str(k), "share": f"{100 * k / n:.0f} %"} for f, k, n in rows]
    survivors = [
        f"- `{r['file']}:{r['line']}` `{' '.join(r['before'].split())}` → `{r['after']}`: {r['status']}, "
        f"{r['tests']} of {r['of']} tests"
        for r in sorted(results, key=lambda r: (r["file"], r["line"]))
        if r["status"] != "killed"
    ]
    return "\n".join([markdown(table), "", *survivors])


def main(
    only: Annotated[list[str], typer.Option(help="Files or folders to mutate.")] = WINGS,
    skip: Annotated[list[str], typer.Option(help="Of these, what to leave out.")] = [],  # noqa: B006
    tests: Annotated[list[str], typer.Option(help="Files or folders of tests.")] = TESTS,
    count: Annotated[int, typer.Option(help="Mutants to try.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    budget: Annotated[float, typer.Option(help="Seconds of tests for each mutant.")] = 60,
    output: Annotated[Path, typer.Option(help="Results, JSON lines.")] = RUNS / "mutants.jsonl",
    again: Annotated[bool, typer.Option(help="Run the survivors in the results once more.")] = False,
) -> None:
    """Counts the mutants that tests kill."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    os.chdir(ROOT)
    RUNS.mkdir(exist_ok=True)
    files = [
        str(path.relative_to(ROOT))
        for one in only
        for path in sorted((ROOT / one).rglob("*.py") if (ROOT / one).is_dir() else [ROOT / one])
        if not any((ROOT / left).resolve() in (path, *path.parents) for left in skip)
    ]
    for name in PRELOADED:
        import_module(name)
    of_tests = covered(tests)
    print(f"{len(of_tests)} tests, {sum(t['seconds'] for t in of_tests.values()):.0f} s", flush=True)
    before = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    done = {(r["file"], r["place"], r["after"]): r for r in before}
    if again:
        mutants = [found for file in files for found in Mutants(file).found]
        mutants = [m for m in mutants if m.key in done and done[m.key]["status"] != "killed"]
    else:
        mutants = [mutant for mutant in sample(files, count, seed) if mutant.key not in done]
    for number, mutant in enumerate(mutants, 1):
        result = judge(mutant, of_tests, budget)
        done[mutant.key] = result
        output.write_text("".join(json.dumps(r) + "\n" for r in done.values()))
        what = f"{mutant.file}:{mutant.line} {' '.join(mutant.before.split())!r} -> {mutant.after!r}"
        print(f"{number}/{len(mutants)} {result['status']} {what} {result['by']}", flush=True)
    print(report(list(done.values())))


if __name__ == "__main__":
    typer.run(main)
