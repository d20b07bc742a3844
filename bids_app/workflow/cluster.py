"""Visits through a nipype plugin of the user's choice: one graph over all of them, on a cluster or in processes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from bids_app.derivatives.record import Record, read_record
from bids_app.environment import check_semaphores, thread_variables
from bids_app.errors import ConfigError
from bids_app.settings import Settings
from bids_app.text import read_text
from bids_app.workflow import worker
from bids_app.workflow.job import Job, begun, finished_by_another, left_error
from bids_app.workflow.worker import Outcome, Tell

_WITH_SEMAPHORES = ("MultiProc", "LegacyMultiProc")
POLL_SECONDS = 0.05  # nipype's own default of two seconds costs more than most steps


def read_plugin(path: Path) -> dict[str, Any]:
    """``plugin`` and ``plugin_args`` of a nipype plugin file (YAML, as fMRIPrep reads it).

    Raises
    ------
    ConfigError
        If the file cannot be read, names no plugin, or one that cannot be used here.
    """
    try:
        content = yaml.safe_load(read_text(path).content)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"The plugin file {path} cannot be read: {error}.", "Correct the file.") from error
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise ConfigError(f"The plugin file {path} names no plugin.", "It needs a line such as 'plugin: SLURM'.")
    arguments = content.get("plugin_args") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(f"plugin_args of the plugin file {path} are no mapping.", "Write them as 'name: value'.")
    _check_plugin(path, content["plugin"])
    # a machine that is smaller than a step asks for runs it all the same, alone
    return {"plugin": content["plugin"], "plugin_args": {"raise_insufficient": False} | arguments}


def _check_plugin(path: Path, name: str) -> None:
    """Fail if nipype has no plugin of this name, or one that does not wait for the jobs it submits."""
    from nipype.pipeline import plugins
    from nipype.pipeline.plugins.base import GraphPluginBase

    known = {item.removesuffix("Plugin"): getattr(plugins, item) for item in dir(plugins) if item.endswith("Plugin")}
    usable = ", ".join(sorted(item for item, plugin in known.items() if not issubclass(plugin, GraphPluginBase)))
    if name not in known:
        raise ConfigError(f"The plugin file {path} names {name}, which is no plugin of nipype.", f"Known: {usable}.")
    if issubclass(known[name], GraphPluginBase):
        raise ConfigError(
            f"The plugin {name} of {path} does not wait for its jobs, so how they end is never known.",
            f"Use one of: {usable}.",
        )


def process_with_plugin(jobs: Sequence[Job], settings: Settings, heard: Tell) -> Iterator[Outcome]:
    """Process the visits with the plugin of `settings`; outcomes come when all have ended.

    Their inputs are read here, before anything is submitted: all visits of one graph begin at once.

    Parameters
    ----------
    heard : callable
        Called with the news that a visit has to wait for another run.
    """
    plugin = read_plugin(settings.plugin_file)
    if plugin["plugin"] in _WITH_SEMAPHORES:
        check_semaphores(f"The plugin {plugin['plugin']}")
    started = time.monotonic()
    with ExitStack() as held:
        ready = []
        for job in jobs:  # every run takes them in this order, so that no two wait for each other
            try:
                job = begun(job)
                held.enter_context(worker.hold(job, heard))
                if record := finished_by_another(job):
                    yield worker.finished(job, record, time.monotonic() - started)
                    continue
                worker.prepare(job)
            except Exception as error:  # whatever happens to one visit must not end the others
                yield worker.failed(job, error, time.monotonic() - started)
                continue
            ready.append(job)
        if ready:
            yield from _process(ready, settings, plugin, started)


def _process(jobs: Sequence[Job], settings: Settings, plugin: Mapping[str, Any], started: float) -> Iterator[Outcome]:
    """Run one graph of all visits, and find out from their records how each ended."""
    failure: Exception | None = None
    try:
        _joined_workflow(jobs, settings).run(**plugin)
    except Exception as error:  # nipype raises when any node failed; which visits did is read from their records
        failure = error
    except BaseException:  # Ctrl-C, or a signal that its processes have not heard
        _end_processes()
        raise
    seconds = time.monotonic() - started
    ended = [(job, _record_of_this_run(job)) for job in jobs]
    left = [job for job, record in ended if record is None]
    if settings.stop_on_first_crash:
        # the visits that were not begun have not failed; where none says why it ended, any may be the one
        left = [job for job in left if left_error(job)] or left
    for job, record in ended:
        if record:
            shutil.rmtree(job.work_folder, ignore_errors=True)
            yield Outcome(job.visit.label, seconds, record.summary)
    for job in left:
        yield worker.failed(job, failure or RuntimeError("the visit was not run"), seconds)


def _end_processes() -> None:
    """End what the plugin has started on this machine; jobs that it has submitted are the queue's."""
    for process in multiprocessing.active_children():
        process.kill()


def _joined_workflow(jobs: Sequence[Job], settings: Settings) -> Any:
    """One graph of all visits."""
    import nipype.pipeline.engine as pe
    from nipype import config

    from bids_app.workflow.graph import visit_workflow

    # the processes that the plugin starts, and the jobs it submits, inherit these
    os.environ.update(thread_variables(settings.omp_nthreads))
    config.set("execution", "poll_sleep_duration", str(POLL_SECONDS))
    config.set("execution", "stop_on_first_crash", str(settings.stop_on_first_crash).lower())
    # made after nipype is configured: a workflow keeps the configuration it was born with. Its name and folder are
    # such that every visit's steps lie in the visit's own work folder
    folder = jobs[0].work_folder.parent
    everything = pe.Workflow(name=folder.name, base_dir=str(folder.parent))
    everything.add_nodes([visit_workflow(job) for job in jobs])
    return everything


def _record_of_this_run(job: Job) -> Record | None:
    """The record that the last step of a visit wrote in this run; None if it did not come to that."""
    record = read_record(job.settings.out_dir, job.visit.subject, job.visit.session)
    return record if record and record.status == "done" and record.run_id == job.run_id else None
