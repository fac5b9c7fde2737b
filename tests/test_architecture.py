"""The house rules that import contracts cannot say, as small linters over the syntax tree, each beside its reason."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
from babel.messages.pofile import read_po

from app import errors

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix() for room in ("app", "regions") for path in (ROOT / room).rglob("*.py")
)
PURE_FILES = {
    "app/audit/checkpoint.py",
    "app/audit/witness/extension.py",
    "app/audit/merkle.py",
    "app/audit/record.py",
    "app/audit/report/document.py",
    "app/audit/report/form.py",
    "app/audit/report/standing.py",
    "app/audit/report/tables.py",
    "app/audit/rights/disclosure.py",
    "app/audit/seal.py",
    "app/audit/report/tally.py",
    "regions/engine/batching.py",
}
PURE = [name for name in SOURCES if name.startswith("app/policy/") or name in PURE_FILES]
Node = TypeVar("Node", bound=ast.AST)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def found(name: str, *kinds: type[Node]) -> Iterator[Node]:
    return (node for node in ast.walk(tree(name)) if isinstance(node, kinds))


def last_name(node: ast.AST) -> str:
    """`now` for `datetime.now`, `now` for `now`; empty for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def at(name: str, node: ast.AST) -> str:
    return f"{name}:{getattr(node, 'lineno', 0)}"


def test_the_linters_see_the_code() -> None:
    assert {"app/types.py", "app/gate.py", "regions/wire.py"} <= set(SOURCES)
    assert {"app/policy/residency.py"} | PURE_FILES <= set(PURE)


# --- the gateway never loads torch: it has to start in a second and fit where no model does.

HEAVY = {"torch", "ray", "numpy", "tokenizers", "regions.worker", "regions.models", "regions.engine", "regions.moe"}


def test_the_gateway_loads_no_worker() -> None:
    commands = ", ".join(name.removesuffix(".py").replace("/", ".") for name in SOURCES if "commands/" in name)
    code = f"import sys, app.main, app.cli, {commands}; print(*sorted(set(sys.modules) & {HEAVY!r}))".replace(
        ".__init__", ""
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr


# --- decisions are pure: `now` and `draw` are arguments, so every decision can be replayed and property-tested.

IMPURE_CALLS = {"now", "utcnow", "today", "time", "monotonic", "perf_counter", "sleep", "open", "print", "input"}
IMPURE_CALLS |= {"read_text", "write_text", "read_bytes", "write_bytes", "getenv", "urandom", "uuid4", "token_hex"}


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_have_no_clock_no_input_and_no_async(name: str) -> None:
    waits = found(name, ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert [at(name, node) for node in waits] == []
    calls = [f"{at(name, call)} {last_name(call.func)}" for call in found(name, ast.Call) if _impure(call)]
    assert calls == []
    assert [at(name, node) for node in found(name, ast.Global, ast.Nonlocal)] == []


def _impure(call: ast.Call) -> bool:
    return last_name(call.func) in IMPURE_CALLS


# --- holding a PermittedRegion is the proof that the law was asked: one function makes them, one client takes them.

MINT = "app/policy/residency.py"


def test_only_the_residency_decision_mints_permitted_regions() -> None:
    """Elsewhere the name stands in types only: not called, not mapped over, not cast to."""
    minted = [at(name, node) for name in SOURCES for node in _values(name) if _mints(node)]
    assert minted
    assert [place for place in minted if not place.startswith(MINT + ":")] == []


def _values(name: str) -> Iterator[ast.AST]:
    """Nodes outside annotations and outside the brackets of a generic type."""
    waiting: list[ast.AST] = [tree(name)]
    while waiting:
        node = waiting.pop()
        yield node
        hidden = {id(getattr(node, part, None)) for part in ("annotation", "returns")}
        if isinstance(node, ast.Subscript):
            hidden.add(id(node.slice))
        waiting.extend(child for child in ast.iter_child_nodes(node) if id(child) not in hidden)


def _mints(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and last_name(node.func) == "cast":
        return "PermittedRegion" in ast.unparse(node.args[0])
    return last_name(node) == "PermittedRegion" and isinstance(getattr(node, "ctx", None), ast.Load)


def test_a_requests_data_leaves_only_for_a_permitted_region() -> None:
    name = "app/fleet/worker_client.py"
    senders = [
        function
        for owner in found(name, ast.ClassDef)
        for function in owner.body
        if isinstance(function, ast.AsyncFunctionDef)
        and not function.name.startswith("_")
        and "Call" in _annotations(function)
    ]
    assert senders
    assert [at(name, f) for f in senders if "PermittedRegion" not in _annotations(f)] == []


def _annotations(function: Function) -> set[str]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {ast.unparse(argument.annotation) for argument in arguments if argument.annotation}


HTTP_CLIENTS = {
    "app/fleet/pool.py": "connects for the worker client, which sends a request's data, to permitted regions only",
    "app/fleet/prober.py": "asks a backend whether it is ready; sends nothing of a request",
    "app/audit/witness/witness.py": "asks other gateways for checkpoints; sends nothing but a log's name and size",
    "app/supervisor.py": "asks its own children whether they are ready",
}


def test_only_the_fleet_talks_to_backends() -> None:
    others = [
        at(name, call)
        for name in SOURCES
        if name not in HTTP_CLIENTS
        for call in found(name, ast.Call)
        if last_name(call.func) in {"AsyncClient", "AsyncHTTPTransport", "open_connection", "create_connection"}
    ]
    assert others == []


def test_only_the_worker_client_has_connections_to_backends() -> None:
    """What takes a `PermittedRegion` would be worth little if others could have its connections."""
    users = {name for name in SOURCES for node in found(name, ast.ImportFrom) if node.module == "app.fleet.pool"}
    assert users == {"app/fleet/worker_client.py"}


# --- a failure that nobody expected must reach the edge, where it is logged with its request and answered once.

EDGES = {
    "app/cli.py": "the edge of a command: a bug too ends in one line",
    "app/gate.py": "the edge of the process: answers 500 in the caller's language",
    "app/audit/log.py": "the edge of a log's thread: if it died, the log could never heal",
    "app/reload.py": "the edge of the reloader: if it died, no change would take force any more",
    "regions/worker/app.py": "the edge of a worker: the client gets an answer and the log a line",
    "regions/engine/runner.py": "whatever a model raises belongs to the items that made it raise",
}


def test_no_catch_all_outside_the_edges() -> None:
    bare = [
        at(name, handler)
        for name in SOURCES
        if name not in EDGES
        for handler in found(name, ast.ExceptHandler)
        if (handler.type is None or {"Exception", "BaseException"} & _names(handler.type)) and not _reraises(handler)
    ]
    assert bare == []


def _reraises(handler: ast.ExceptHandler) -> bool:
    """Whether a handler only tidies up and lets the failure go on."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def _names(node: ast.AST) -> set[str]:
    return {last_name(part) for part in ast.walk(node)}


# --- no module-level mutable state: two gateways live in one test process, and a test owes nothing to the one before.

STATEFUL = {"dict", "list", "set", "defaultdict", "deque", "OrderedDict", "Counter", "Gauge", "Histogram", "Summary"}
STATEFUL |= {
    "CollectorRegistry",
    "Lock",
    "Event",
    "Queue",
    "Semaphore",
    "TTLCache",
    "LRUCache",
    "AsyncClient",
    "Thread",
}
LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
CHANGES = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"}


@pytest.mark.parametrize("name", SOURCES)
def test_no_mutable_state_in_modules(name: str) -> None:
    """A table is a constant: in capitals, and nothing in its module changes it."""
    wrong = []
    tables = set()
    for statement in tree(name).body:
        target, value = _assignment(statement)
        if target in {"", "__all__"} or value is None:
            continue
        stateful = isinstance(value, ast.Call) and last_name(value.func) in STATEFUL
        if isinstance(value, LITERALS) and target.isupper():
            tables.add(target)
        elif stateful or isinstance(value, LITERALS):
            wrong.append(f"{at(name, statement)} {target}")
    wrong += [f"{at(name, node)} global" for node in found(name, ast.Global)]
    wrong += [f"{at(name, node)} changes a table" for node in ast.walk(tree(name)) if _changed(node) & tables]
    assert wrong == []


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr | None]:
    if isinstance(statement, ast.AnnAssign):
        return last_name(statement.target), statement.value
    if isinstance(statement, ast.Assign):
        return last_name(statement.targets[0]), statement.value
    return "", None


def _changed(node: ast.AST) -> set[str]:
    """Names of the containers that a node changes."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return {last_name(node.value)}
    if isinstance(node, ast.AugAssign):
        return {last_name(node.target)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
        return {last_name(node.func.value)}
    return set()


# --- the environment is read where a process begins and handed down, so that nothing else depends on it.

ENTRIES = ("app/config.py", "regions/worker/__main__.py", "regions/worker/settings.py")


def test_the_environment_is_read_at_the_entries_only() -> None:
    reads = [
        at(name, node)
        for name in SOURCES
        if not name.startswith(ENTRIES)
        for node in found(name, ast.Attribute, ast.ImportFrom)
        if _reads_environment(node)
    ]
    assert reads == []


def _reads_environment(node: ast.Attribute | ast.ImportFrom) -> bool:
    words = {"environ", "environb", "getenv", "getenvb"}
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in words for alias in node.names)
    return node.attr in words and last_name(node.value) == "os"


# --- what a caller reads stands in the catalogues: every message id exists, and no value of one is English prose.

CODES = {
    name: error.code
    for name, error in vars(errors).items()
    if isinstance(error, type) and issubclass(error, errors.GatewayError) and "code" in vars(error)
}


@cache
def english() -> frozenset[str]:
    with (ROOT / "locales/en/LC_MESSAGES/messages.po").open("rb") as file:
        ids = (message.id for message in read_po(file) if message.id)
        return frozenset(one if isinstance(one, str) else one[0] for one in ids)


def test_every_error_that_is_raised_has_a_message() -> None:
    missing = []
    for name in SOURCES:
        for call in found(name, ast.Call):
            code, detail = _message(call)
            if code and (f"{code}.{detail}" if detail else code) not in english():
                missing.append(f"{at(name, call)} {code}.{detail}")
    assert missing == []


def _message(call: ast.Call) -> tuple[str, str | None]:
    """Code and detail of a call that makes an error; an empty code where it makes none, or names it at run time."""
    made = last_name(call.func)
    if made in {"InvalidInput", "UnknownRegion"} | CODES.keys():
        code = CODES.get(made, "invalid_request")
        named = [keyword.value for keyword in call.keywords if keyword.arg == "detail"]
        details = named or ([] if made == "InvalidInput" else call.args[:1])
        if not details:
            return code, None
        if isinstance(details[0], ast.Constant) and isinstance(details[0].value, str):
            return code, details[0].value
    return "", None


def test_no_english_in_the_values_of_an_error() -> None:
    prose = [
        f"{at(name, keyword.value)} {keyword.arg}"
        for name in SOURCES
        for call in found(name, ast.Call)
        if last_name(call.func) in {"InvalidInput"} | CODES.keys()
        for keyword in call.keywords
        if keyword.arg not in {"headers", "param", "extra", None} and _is_prose(keyword.value)
    ]
    assert prose == []


def _is_prose(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, str) and len(value.value.split()) > 2


def test_only_one_place_renders_errors() -> None:
    """No handler builds error JSON: `app.shapes` alone writes the three of them."""
    built = [
        at(name, node)
        for name in SOURCES
        if name.startswith("app/") and name != "app/shapes.py"
        for node in found(name, ast.Dict)
        if any(isinstance(key, ast.Constant) and key.value == "error" for key in node.keys)
    ]
    assert built == []


# --- a stranger reads one file at a time: small enough to hold in mind.

LONG_FILES = {"app/config.py": "one page that lists every setting"}
LONG_FUNCTIONS = {
    "app/audit/record.py:decision": "one field of the record a line",
}
FILE_LINES, FUNCTION_LINES, MEDIAN_LINES = 300, 50, 12


@pytest.mark.parametrize("name", SOURCES)
def test_files_and_functions_are_short(name: str) -> None:
    assert _lines(name) <= FILE_LINES or name in LONG_FILES
    long = [f"{at(name, f)} {f.name}: {_length(f)}" for f in found(name, *Function.__args__) if _is_long(name, f)]
    assert long == []


def test_most_functions_are_very_short() -> None:
    lengths = [_length(function) for name in SOURCES for function in found(name, *Function.__args__)]
    assert statistics.median(lengths) <= MEDIAN_LINES


def test_exceptions_are_still_needed() -> None:
    """An exception that nothing needs any more would hide the next one."""
    assert [
        name for name in LONG_FILES if len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    ] == []
    long = {
        f"{name}:{f.name}" for name in SOURCES for f in found(name, *Function.__args__) if _length(f) > FUNCTION_LINES
    }
    assert set(LONG_FUNCTIONS) - long == set()
    assert set(EDGES) <= set(SOURCES)
    assert set(HTTP_CLIENTS) <= set(SOURCES)


def _lines(name: str) -> int:
    return len((ROOT / name).read_text(encoding="utf-8").splitlines())


def _length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _is_long(name: str, function: Function) -> bool:
    return _length(function) > FUNCTION_LINES and f"{name}:{function.name}" not in LONG_FUNCTIONS


# --- the first line of a file says what it owns.


@pytest.mark.parametrize("name", [name for name in SOURCES if (ROOT / name).stat().st_size])
def test_every_file_says_what_it_owns(name: str) -> None:
    assert len((ast.get_docstring(tree(name)) or "").splitlines()[:1][0]) > 20
