"""The nipype graph of one visit: five steps in a row, each handing on what it made."""

from __future__ import annotations

from pathlib import Path

import nipype.pipeline.engine as pe

from bids_app.workflow import interfaces
from bids_app.workflow.job import MEMORY_GB, Job

#: Steps in order, and the input under which later steps receive what each makes.
STEPS = (
    ("prepare", interfaces.Prepare, "prepared"),
    ("pose", interfaces.Pose, "posed"),
    ("segment", interfaces.Segment, "segmented"),
    ("normalize", interfaces.Normalize, "normalized"),
    ("deliver", interfaces.Deliver, None),
)


def visit_workflow(job: Job, base_dir: Path, name: str = "visit") -> pe.Workflow:
    """The graph of one visit; every step receives the job and the results of all steps before it."""
    workflow = pe.Workflow(name=name, base_dir=str(base_dir))
    done: list[tuple[pe.Node, str]] = []
    for step, interface, product in STEPS:
        node = pe.Node(interface(job=job), name=step, n_procs=job.settings.omp_nthreads, mem_gb=MEMORY_GB)
        workflow.add_nodes([node])
        for earlier, role in done:
            workflow.connect(earlier, "out", node, role)
        done.append((node, product))
    return workflow
