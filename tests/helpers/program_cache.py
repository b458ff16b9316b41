"""Where the tests, and the processes they start, keep the programs they compile."""

import importlib.util
import os
import pathlib
import tempfile

ROOT = pathlib.Path(__file__).parents[2]


def machine_key():
    """That of rlhf_jax.runs.startup, which is imported later, when its types are checked."""
    path = ROOT / "rlhf_jax" / "runs" / "startup.py"
    specification = importlib.util.spec_from_file_location("startup", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.machine_key()


# One for all processes, as keys depend on the path: an eighth would be compiled by two workers
# otherwise. JAX does not write it atomically, but half an entry cannot be decompressed: who meets
# one warns and compiles. Nor does it name the processor that a program is for, and other
# instructions give other bits, so a folder that has come to another machine is not used there.
CACHE = pathlib.Path(tempfile.gettempdir()) / f"rlhf_jax_test_cache_{os.getuid()}_{machine_key()}"
