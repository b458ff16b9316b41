"""Every regular expression of the project, and texts that make a slow one slow."""

import ast
import importlib
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
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
    """Modules of the library, the experiments and the benchmarks that use expressions."""
    files = [
        path
        for room in ("rlhf_jax", "experiments", "benchmarks")
        for path in sorted((ROOT / room).rglob("*.py"))
        if "import re\n" in path.read_text(encoding="utf-8")
    ]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]


def patterns(name: str) -> tuple[list[Pattern], list[str]]:
    """The expressions of a module, and those that are built only when they are used."""
    module = importlib.import_module(name)
    found, built = list(of_globals(module)), []
    for call in calls_of_re(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        text, flags = constant(call.args[0], module), flags_of(call, module)
        if text is None:
            built.append(f"{name}: {ast.unparse(call.args[0])}")
        elif call.func.attr != "compile":
            where = f"{name}:{call.lineno}"
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
    """How a module calls its expression ``name``; "search", the hardest, if that is not plain.

    Of several in a tuple the name is another, so that all calls of the module count.
    """
    calls = [
        (ast.unparse(node.func.value), node.func.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in METHODS
    ]
    used = {method for receiver, method in calls if receiver == name}
    used = used or {way for what, way in calls if what != "re" and way != "split"}
    return sorted(used) if used and used <= {"match", "fullmatch"} else ["search"]


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
    """Units that are repeated into texts: beginnings of what the expression matches, runs of the
    characters that it tells apart, and draws of these that the expression itself decides.
    """
    dice = random.Random(ascii(pattern.pattern))
    parsed = re._parser.parse(pattern.pattern, pattern.flags)
    examples = [example(parsed, dice) for _ in range(count)]
    begun = [each[: dice.randint(1, len(each))] for each in examples if each]
    letters = [*dict.fromkeys("".join(examples)), *"a1 .\n中A-@("]
    drawn = ["".join(dice.choices(letters, k=dice.randint(1, 3))) for _ in range(count)]
    made = [*begun[:3], *dict.fromkeys(letters[:2]), "a", "1", " ", "\n", *drawn]
    return list(dict.fromkeys([*made, *drawn, *map(str, range(count))]))[:count]


def example(parsed, dice: random.Random) -> str:
    """A text that the expression matches, but for what it only looks at."""
    made = ""
    for operation, argument in parsed:
        name = str(operation)
        if name == "LITERAL":
            made += chr(argument)
        elif name == "IN":
            made += one_of(argument, dice)
        elif name in ("ANY", "NOT_LITERAL"):
            made += "b"
        elif name == "BRANCH":
            made += example(dice.choice(argument[1]), dice)
        elif name == "SUBPATTERN":
            made += example(argument[-1], dice)
        elif name.endswith("REPEAT"):
            low, high, part = argument
            made += "".join(example(part, dice) for _ in range(min(max(low, 1), high)))
    return made


def one_of(members, dice: random.Random) -> str:
    """A character of a set, or an ordinary one where the set says only which it has not."""
    kinds = {"CATEGORY_DIGIT": "7", "CATEGORY_SPACE": " ", "CATEGORY_WORD": "w"}
    found = [
        chr(value if str(kind) == "LITERAL" else value[0])
        if str(kind) in ("LITERAL", "RANGE")
        else kinds.get(str(value), "b")
        for kind, value in members
        if str(kind) != "NEGATE"
    ]
    return "b" if str(members[0][0]) == "NEGATE" else dice.choice(found)
