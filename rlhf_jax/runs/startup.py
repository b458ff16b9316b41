"""What a process does once, before its first array: allocator, compilation cache, log level."""

import ctypes
import gc
import hashlib
import logging
import platform
from pathlib import Path

import jax

# mallopt parameters of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
YOUNG, MIDDLE, OLD = 50_000, 20, 50
"""After how many new objects Python looks for cycles among them, and after how many such looks
among older and the oldest ones."""


def start(*, tune_malloc: bool, compile_cache: Path | None) -> None:
    """Prepare the process; call before the first computation, and after ``connect``."""
    # Orbax and absl report every save at INFO; our own lines are enough.
    logging.getLogger("absl").setLevel(logging.ERROR)
    collect_seldom()
    if tune_malloc and platform.libc_ver()[0] == "glibc":
        keep_freed_memory()
    # A folder that the user gave to JAX itself stays.
    users_folder = jax.config.jax_compilation_cache_dir  # ty: ignore[missing-attribute] - JAX sets it
    if compile_cache is not None and users_folder is None:
        jax.config.update("jax_compilation_cache_dir", str(compile_cache / machine_key()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def collect_seldom() -> None:
    """Have Python look for cycles less often, and never among what the imports have made.

    Tracing makes millions of objects that live as long as the process, and by default they are all
    looked through again and again (a tenth of the time that a short run takes).
    """
    if gc.get_threshold()[0] != YOUNG:  # once in a process, which may run several stages
        gc.freeze()
        gc.set_threshold(YOUNG, MIDDLE, OLD)


def machine_key(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The same on machines whose compiled programs are interchangeable.

    Programs for a CPU use the instructions it has, and JAX's own key does not name them: on a file
    system that several kinds of machine share, one would be given another's programs.
    """
    facts = [platform.machine(), platform.processor()]
    if cpuinfo.is_file():
        first = cpuinfo.read_text().split("\n\n")[0].splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        facts += [line for line in first if line.startswith(wanted)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def keep_freed_memory() -> None:
    """Have malloc keep what is freed: XLA:CPU allocates its temporaries anew on every run.

    By default glibc gives them back to the kernel and every step pays the page faults again
    (20 to 30 % of a step's time).
    """
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TOP_PAD, 64 * 2**20)
