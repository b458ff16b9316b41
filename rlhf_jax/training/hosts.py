"""Several processes as one: start-up, agreement, and what happens when a peer dies.

On a pod each host runs the same command and drives its own chips. Only process 0 writes logs and
the run folder; all write, and read, their parts of a checkpoint, so the folder must be shared.
"""

import datetime
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlhf_jax.config import ParallelConfig
from rlhf_jax.errors import InputError, RunError, describe_os_error

CLUSTERS = {
    "SLURM_NTASKS": "Slurm",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "JAX_NUM_PROCESSES": "JobSet",
}
"""Variables that hold a number of processes, where a launcher sets them."""
HEARTBEAT_SECONDS = 60
"""A peer that is silent for so long is taken for dead."""


def cluster(environment: Mapping[str, str]) -> str | None:
    """Whose launcher started several processes; None when this is the only one."""
    for variable, name in CLUSTERS.items():
        # A launcher sets its variable for a single process too.
        if environment.get(variable, "").isdecimal() and int(environment[variable]) > 1:
            return name
    # A TPU pod's hosts, as the TPU runtime lists them; on GKE too.
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    return "TPU pod" if "," in hosts and "WARNING" not in hosts else None


def several(config: ParallelConfig) -> bool:
    """Whether flags or the cluster's environment say that there are several processes."""
    return bool(config.coordinator) or (config.hosts != "off" and cluster(os.environ) is not None)


def connect(config: ParallelConfig) -> None:
    """Join the other processes, if flags or the cluster's environment say that there are any.

    Called before any other use of JAX. Raises InputError if the coordinator is not reached.
    """
    # A chain's later stages run in processes that have been joined already.
    if jax.distributed.is_initialized():
        return
    where: dict[str, Any] = {}
    if config.coordinator:
        where = {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process_id,
        }
    if not several(config):
        return
    try:
        jax.distributed.initialize(**where, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except RuntimeError as error:
        # The rest of the runtime's message is its own stack.
        reason = str(error).strip().partition("\n")[0]
        named = config.coordinator or f"the coordinator of {cluster(os.environ)}"
        raise InputError(f"cannot join the other processes at {named}: {reason}") from error


def sync(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed_time(here: datetime.datetime) -> datetime.datetime:
    """``here`` of process 0, to the second: clocks and zones of hosts differ. All call this."""
    if jax.process_count() == 1:
        return here
    # Two small integers: a broadcast of one float32 timestamp would round to minutes.
    day, seconds = here.toordinal(), 3600 * here.hour + 60 * here.minute + here.second
    day, seconds = multihost_utils.broadcast_one_to_all(np.array([day, seconds], np.int32))
    midnight = datetime.datetime.fromordinal(int(day))
    return midnight + datetime.timedelta(seconds=int(seconds))


def asked_to_stop(step: int, alone: bool) -> bool:
    """Whether to save and end after this step: ``alone`` if there is one process.

    With several the runtime sees SIGTERM (a preempted machine) in any of them and has all agree on
    the next step. All call this after every step, and ``step`` counts from 1 in each start: a
    notice that comes before the first step of a resumed run means step 1, not one long past.
    """
    if jax.process_count() == 1:
        return alone
    return multihost_utils.reached_preemption_sync_point(step)


def leave(error: BaseException) -> None:
    """End this process at once, with one sentence, so that its peers end too.

    An orderly exit would wait for peers that are dead, or that wait for this process.
    """
    mine = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, InputError | RunError):
        code, message = 2 if isinstance(error, InputError) else 1, f"{mine}: {error}"
    elif isinstance(error, OSError):
        code, message = 1, f"{mine}: {describe_os_error(error)}; {AGAIN}"
    elif isinstance(error, KeyboardInterrupt):
        code, message = 130, f"{mine} was ended by Ctrl-C, without saving; {AGAIN}"
    elif lost := lost_peer(error):
        code, message = 1, f"{mine} lost another one ({lost}); {AGAIN}"
    else:
        traceback.print_exception(error)
        code, message = 1, f"{mine} failed, and so ends all of them; {AGAIN}"
    print(f"stopped: {message}", file=sys.stderr, flush=True)
    # At once, without clean-up that would wait for peers.
    os._exit(code)


AGAIN = (
    "start all of them again with the same command: the run goes on from its last checkpoint, if "
    "it has one"
)


def lost_peer(error: BaseException | None) -> str | None:
    """The runtime's reason, when ``error`` came from a collective that a peer did not join."""
    # The runtime's error may be wrapped by whoever was at work when the peer was lost.
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return str(error).strip().partition("\n")[0][:200]
        error = error.__cause__ or error.__context__
    return None
