"""Cells one after another, in processes of this machine, or as Ray tasks over a cluster.

All three do the same to each cell, so they leave the same numbers.
"""

import importlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from ..errors import InputError, PrerequisiteError, unknown_choice
from .cells import Job
from .doing import died, do, finished

ENGINES = ("processes", "ray")
_DIED = "its process ended before it did; was there memory enough? log.txt beside it says more"

Done = Callable[[Job], None]
"""Called as each cell is done, in the order in which they are."""


def check_engine(engine: str, workers: int) -> None:
    """Refuse an engine that is not there.

    Raises:
        InputError: If its name is unknown, or there are no workers.
        PrerequisiteError: If Ray is not installed.
    """
    if engine not in ENGINES:
        raise unknown_choice("engine", engine, ENGINES)
    if workers < 1:
        raise InputError(f"`workers` must be 1 or more, got {workers}.")
    if engine == "ray":
        _ray()


def run_jobs(
    todo: Sequence[Job],
    done: Done,
    *,
    engine: str = "processes",
    workers: int = 1,
    address: str | None = None,
    gpus_per_cell: float = 0.0,
) -> None:
    """Do every job; one that fails says so in its file, and the others go on.

    Args:
        todo: What to do.
        done: Called as each is done.
        engine: One of `ENGINES`.
        workers: How many processes; with one, this process does them. Ray has its own.
        address: Of a Ray cluster, whose machines must all see the folders of the jobs; a local one
            with as many workers if None.
        gpus_per_cell: What a Ray task asks for.
    """
    if engine == "ray":
        _on_ray(todo, done, workers, address, gpus_per_cell)
    elif workers == 1:
        for job in todo:
            do(job)
            done(job)
    else:
        _in_processes(todo, done, workers)


def _in_processes(todo: Sequence[Job], done: Done, workers: int) -> None:
    waiting = list(todo)
    while waiting:
        context = get_context("spawn")
        with ProcessPoolExecutor(
            workers, context, initializer=_end_with, initargs=(os.getpid(),)
        ) as pool:
            running: dict[Any, Job] = {}
            # Of a pool that breaks only the cells in hand are lost: no more are handed out.
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    running[pool.submit(do, job)] = job
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                broken = any(isinstance(each.exception(), BrokenProcessPool) for each in ended)
                for each in list(running) if broken else ended:
                    job = running.pop(each)
                    if broken:
                        _lost(job, done, _DIED)
                    else:
                        each.result()
                        done(job)
                if broken:
                    break


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that came to its end."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_ray(
    todo: Sequence[Job], done: Done, workers: int, address: str | None, gpus: float
) -> None:
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        local: dict[str, int | bool] = (
            {} if address else {"num_cpus": workers, "include_dashboard": False}
        )
        try:
            ray.init(address, log_to_driver=False, logging_level="warning", **local)
        except ConnectionError as error:
            raise PrerequisiteError(f"`address` {address}: no Ray cluster answers.") from error
    # Ray gives a task one thread of OpenMP; `do` sets what the plan says.
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(do)
    try:
        running = {task.remote(job): job for job in todo}
        while running:
            (each, *_), _ = ray.wait(list(running))
            job = running.pop(each)
            try:
                ray.get(each)
            except ray.exceptions.RayError as error:
                _lost(job, done, f"{_DIED} ({type(error).__name__})")
                continue
            done(job)
    finally:
        if ours:
            ray.shutdown()


def _lost(job: Job, done: Done, reason: str) -> None:
    if finished(job) is None:
        died(job, reason)
    done(job)


def _ray() -> Any:
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            "`engine` 'ray' needs Ray, which is not installed. Run `pip install 'moorline[ray]'`."
        ) from error
    return ray
