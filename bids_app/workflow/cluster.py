"""Visits through a nipype plugin of the user's choice: one graph over all of them, on a cluster or in processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from bids_app.derivatives.record import read_record
from bids_app.errors import ConfigError, ExitCode
from bids_app.settings import Settings
from bids_app.workflow.job import Job
from bids_app.workflow.worker import Outcome

POLL_SECONDS = 0.05  # nipype's own default of two seconds costs more than most steps


def read_plugin(path: Path) -> dict[str, Any]:
    """``plugin`` and ``plugin_args`` of a nipype plugin file (YAML, as fMRIPrep reads it).

    Raises
    ------
    ConfigError
        If the file cannot be read or names no plugin.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The plugin file {path} cannot be read: {error}.", "Correct the file.") from error
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise ConfigError(f"The plugin file {path} names no plugin.", "It needs a line such as 'plugin: SLURM'.")
    return {"plugin": content["plugin"], "plugin_args": content.get("plugin_args") or {}}


def process_with_plugin(jobs: Sequence[Job], settings: Settings) -> Iterator[Outcome]:
    """Process the visits with the plugin of `settings`; outcomes come when all have ended."""
    import nipype.pipeline.engine as pe
    from nipype import config

    from bids_app.workflow import worker
    from bids_app.workflow.deliver import deliver_failure
    from bids_app.workflow.graph import visit_workflow

    plugin = read_plugin(settings.plugin_file)
    for job in jobs:
        worker.prepare(job)
    config.set("execution", "poll_sleep_duration", str(POLL_SECONDS))
    config.set("execution", "stop_on_first_crash", str(settings.stop_on_first_crash).lower())
    # made after nipype is configured: a workflow keeps the configuration it was born with
    everything = pe.Workflow(name="afterstroke", base_dir=str(_base_folder(jobs)))
    for job in jobs:
        everything.add_nodes([visit_workflow(job, job.work_folder, name=job.work_folder.name.replace("-", ""))])
    started = time.time()
    failure: Exception | None = None
    try:
        everything.run(**plugin)
    except Exception as error:  # nipype raises when any node failed; which visits did is read from their records
        failure = error
    for job in jobs:
        record = read_record(settings.out_dir, job.visit.subject, job.visit.session)
        if record and record.status == "done" and record.run_id == job.run_id:
            yield Outcome(job.visit.label, time.time() - started, record.summary)
            continue
        message, code = worker.explain(job, failure or RuntimeError("the visit was not run"))
        deliver_failure(job, message)
        yield Outcome(job.visit.label, time.time() - started, {}, message, code or ExitCode.VISIT_FAILED)


def _base_folder(jobs: Sequence[Job]) -> Path:
    """Work folder of the joined graph; inside it, visits are named by label and fingerprint, as alone."""
    return jobs[0].work_folder.parent
