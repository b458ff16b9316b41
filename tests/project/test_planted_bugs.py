"""The table of planted bugs fits today's code; ``python -m tests.planted_bugs`` plants them."""

import ast
from functools import cache

import pytest
from planted_bugs import PLANTS, ROOT


@cache
def source(file):
    return (ROOT / file).read_text(encoding="utf-8")


@cache
def functions(file):
    return {node.name for node in ast.parse(source(file)).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: str(plant.number))
def test_the_bug_can_be_planted_and_its_test_exists(plant):
    occurrences = source(plant.file).count(plant.old)
    assert occurrences == 1, f"{plant.file} has changed: {plant.old!r}"
    assert plant.new != plant.old
    compile(source(plant.file).replace(plant.old, plant.new), plant.file, "exec")
    file, _, name = plant.test.partition("::")
    assert name.partition("[")[0] in functions(file)


def test_every_bug_of_the_list_is_planted_once():
    numbers = [plant.number for plant in PLANTS]
    assert len(set(numbers)) == len(numbers)
    assert {*range(1, 49)} <= {*numbers}
