"""Global switches: every test runs with the strictest settings JAX has."""

import collections
import importlib.metadata
import os

# Tests are for CPUs, whatever this machine has; libtpu, where installed, need not look for a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation. These programs compile three times faster and run slowly;
# most tests against PyTorch run the ones that users run (XLA_FLAGS= in make test-torch-full). Other
# flags are added to these, and what is said twice is as said last.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
JAXLIB = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
if JAXLIB < (0, 11):  # later ones, on Python 3.12 and 3.13, end at a flag they do not know
    QUICK += " --xla_cpu_use_fusion_emitters=false"
GIVEN = os.environ.get("XLA_FLAGS")
if GIVEN != "" and QUICK not in (GIVEN or ""):
    os.environ["XLA_FLAGS"] = f"{QUICK} {GIVEN or ''}".strip()

# Where an operation was written need not be said in what is compiled: lowering takes a tenth less.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax  # noqa: E402
import pytest  # noqa: E402
from beartype.claw import beartype_packages  # noqa: E402
from program_cache import CACHE  # noqa: E402

TEXT = (
    *("rlhf_jax.data", "rlhf_jax.tasks", "rlhf_jax.text", "rlhf_jax.feedback", "rlhf_jax.cli"),
    *("rlhf_jax.errors", "rlhf_jax.help_pages", "rlhf_jax.python_files"),
)
"""Called a million times, so that pyproject.toml's checks would take longer than they do. A module
that both name has its shapes checked."""
beartype_packages(TEXT)


LONGEST = (
    *("chain", "tutorials", "hosts", "parallel", "feedback_rounds", "task_chain", "options"),
    *("privacy", "recompilation", "topologies", "benchmarks", "doctor", "safety", "presets"),
    *("classical_bugs", "dpo", "learning", "reward_options", "attention", "convert"),
    *("feedback_server", "updates", "generate", "commands", "transformer", "settings"),
    "pretrained",
    *("update_trl", "ecosystem"),  # against PyTorch
)
"""Files that take from minutes to half a minute. They are begun first, so that two processes, each
of which takes whole files, end together (with --no-loadscope-reorder: by their number of tests
otherwise)."""


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not ask for
def pytest_collection_modifyitems(items):
    place = {f"test_{name}.py": n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    mark_further_cases_slow(items)


def mark_further_cases_slow(items):
    """Of a test marked `cases(n)`, n cases from all over its list stay in the fast suite."""
    tests = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("cases"):
            tests[item.path, item.originalname].append(item)
    for cases in tests.values():
        few = cases[0].get_closest_marker("cases").args[0]
        kept = {n * len(cases) // few for n in range(few)}
        for n, item in enumerate(cases):
            if n not in kept:
                item.add_marker("slow")


def pytest_collection_finish():
    """As every command does; by now all that the tests use has been imported."""
    from rlhf_jax.runs.startup import collect_seldom

    collect_seldom()


def pytest_configure(config):
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_debug_key_reuse", True)
    jax.config.update("jax_legacy_prng_key", "error")


@pytest.fixture
def float64():
    """In float64 two programs of the same computation agree to a billionth: see precision.py."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def module_in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)
