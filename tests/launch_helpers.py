"""Several processes on this machine, with the environment that `accelerate launch` gives each of its own."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from pathlib import Path

import torch

# A server imports these once and forks from there; what a test itself defines is imported by each process.
multiprocessing.set_forkserver_preload(["pacl.training.trainer", "conftest"])


def launch(function, num_processes, *args, **environment):
    """
    Run `function(*args)` on each of several processes that can form a group.

    Args:
        function (`Callable`): of a module that a new process can import.
        num_processes (`int`): how many.
        args: passed on.
        environment (`str`): further environment variables.

    Returns:
        `list`: what it returned on each, in the order of their ranks.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        environment |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        free.close()
        torch.multiprocessing.start_processes(
            _run, (function, args, environment, folder), nprocs=num_processes, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(num_processes)]


def _run(rank, function, args, environment, folder):
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
