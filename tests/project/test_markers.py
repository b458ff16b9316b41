"""Which cases of a test stay in the fast suite."""

from pathlib import Path

import pytest
from conftest import mark_further_cases_slow


class Item:
    """What pytest collects, as far as it matters here."""

    path = Path("test_a.py")

    def __init__(self, name, few=None):
        self.originalname, self.markers = name, {}
        if few is not None:
            self.markers["cases"] = pytest.mark.cases(few).mark

    def get_closest_marker(self, name):
        return self.markers.get(name)

    def add_marker(self, name):
        self.markers[name] = True


@pytest.mark.parametrize("few, fast", [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (7, range(7))])
def test_some_cases_from_all_over_the_list_stay_fast(few, fast):
    others = [Item("test_b"), Item("test_b")]
    cases = [Item("test_a", few) for _ in range(7)]
    mark_further_cases_slow([others[0], *cases, others[1]])
    assert [n for n, item in enumerate(cases) if "slow" not in item.markers] == [*fast]
    assert not any("slow" in item.markers for item in others)


def test_tests_of_one_name_in_two_files_are_two():
    first, second = (Item("test_a", 1) for _ in range(2))
    second.path = Path("test_b.py")
    mark_further_cases_slow([first, second])
    assert "slow" not in first.markers | second.markers
