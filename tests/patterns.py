"""Every regular expression of the project, and texts that make a slow one slow."""

import ast
import importlib
import importlib.util
import itertools
import pkgutil
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

METHODS = ("search", "match", "fullmatch", "findall", "finditer", "sub", "subn", "split", "compile")


class Pattern(NamedTuple):
    """An expression, where it stands and how it is used."""

    where: str
    compiled: re.Pattern
    method: str
    """match and fullmatch try one place; all else tries every place of a text."""

    def run(self, text: str) -> None:
        if self.method in ("match", "fullmatch"):
            getattr(self.compiled, self.method)(text)
        else:
            for _ in self.compiled.finditer(text):
                pass


def modules() -> list[str]:
    """Every module of the library, the experiments and the benchmarks."""
    names = [
        each.name
        for room in ("rlhf_jax", "experiments", "benchmarks")
        for each in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}.")
    ]
    return sorted(names)


def patterns(names: list[str]) -> tuple[list[Pattern], list[str]]:
    """The expressions of modules, and where one is built only when it is used."""
    found, built = [], []
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec.origin is None or not spec.origin.endswith(".py"):
            continue
        source = Path(spec.origin).read_text(encoding="utf-8")
        if "import re\n" not in source:
            continue
        module = importlib.import_module(name)
        found += of_globals(module)
        for call in calls_of_re(ast.parse(source)):
            where = f"{name}:{call.lineno}"
            text, flags = constant(call.args[0], module), flags_of(call, module)
            if text is None:
                built.append(f"{name}: {ast.unparse(call.args[0])}")
            elif call.func.attr != "compile":
                found.append(Pattern(where, re.compile(text, flags), call.func.attr))
    return found, built


def of_globals(module) -> Iterator[Pattern]:
    """Compiled expressions among a module's names, also inside tuples, lists and dicts."""

    def inside(value):
        if isinstance(value, re.Pattern):
            yield value
        elif isinstance(value, tuple | list):
            yield from itertools.chain.from_iterable(map(inside, value))
        elif isinstance(value, dict):
            yield from itertools.chain.from_iterable(map(inside, value.values()))

    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for name, value in vars(module).items():
        if name.startswith("__"):
            continue
        used = methods_of(name, tree)
        for compiled in inside(value):
            for method in used:
                yield Pattern(f"{module.__name__}.{name}", compiled, method)


def methods_of(name: str, tree: ast.Module) -> list[str]:
    """How a module calls its expression ``name``; "search", the hardest, if that is not plain."""
    used = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == name
    }
    one_place = {"match", "fullmatch"}
    return sorted(used) if used and used <= one_place else ["search"]


def calls_of_re(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr in METHODS
        ):
            yield node


def constant(node: ast.expr, module) -> str | None:
    """The text of an expression that the module's names alone decide, else None."""
    try:
        value = eval(compile(ast.Expression(node), "", "eval"), vars(module), {})
    except NameError:
        return None
    return value.pattern if isinstance(value, re.Pattern) else value


def flags_of(call: ast.Call, module) -> int:
    """Flags that a call gives: its last argument, by place or by name."""
    given = [each for each in call.args[1:] if "re." in ast.unparse(each)]
    given += [each.value for each in call.keywords if each.arg == "flags"]
    flags = [eval(compile(ast.Expression(each), "", "eval"), vars(module), {}) for each in given]
    return flags[0] if flags and isinstance(flags[0], int) else 0


# --- texts ----------------------------------------------------------------------------------------


def shapes(pattern: re.Pattern, count: int) -> list[str]:
    """Units that are repeated into texts: of the characters that the expression tells apart.

    Single ones first, as runs make most backtracking; then pairs and more, drawn by the pattern.
    """
    letters = alphabet(pattern)
    dice = random.Random(ascii(pattern.pattern))
    words = [word for word in literals(pattern) if len(word) > 1]
    made = [*words[:2], *letters[:4]]
    while len(made) < count:
        made.append("".join(dice.choice(letters) for _ in range(dice.randint(1, 4))))
    return made[:count]


def alphabet(pattern: re.Pattern) -> list[str]:
    """A character of each class and literal, and of each kind that texts have."""
    general = "a1 .\n中A-@("
    own = [each for each in dict.fromkeys("".join(literals(pattern))) if each not in general]
    return [*own[:12], *general]


def literals(pattern: re.Pattern) -> list[str]:
    """Runs of literal characters, and one character of each set, in the expression's order."""
    made: list[str] = []

    def walk(parsed) -> None:
        run = ""
        for operation, argument in parsed:
            name = str(operation)
            if name == "LITERAL":
                run += chr(argument)
                continue
            if run:
                made.append(run)
                run = ""
            if name == "IN":
                made.extend(
                    chr(a[0] if str(o) == "RANGE" else a)
                    for o, a in argument
                    if str(o) in ("LITERAL", "RANGE")
                )
            for part in argument if isinstance(argument, tuple | list) else ():
                for piece in part if name == "BRANCH" and isinstance(part, list) else (part,):
                    if isinstance(piece, re._parser.SubPattern):
                        walk(piece)
        if run:
            made.append(run)

    walk(re._parser.parse(pattern.pattern, pattern.flags))
    return made
