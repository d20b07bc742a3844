"""The nipype graph of one visit: seven steps in a row, each handing on what it made."""

from __future__ import annotations

import nipype.pipeline.engine as pe

from bids_app.workflow import interfaces
from bids_app.workflow.job import MEMORY_GB, Job

#: Steps in order, and the input under which later steps receive what each makes.
STEPS = (
    ("prepare", interfaces.Prepare, "prepared"),
    ("pose", interfaces.Pose, "posed"),
    ("segment", interfaces.Segment, "segmented"),
    ("align", interfaces.Align, "aligned"),
    ("normalize", interfaces.Normalize, "normalized"),
    ("explain", interfaces.Explain, "anomalies"),
    ("deliver", interfaces.Deliver, None),
)


def visit_workflow(job: Job) -> pe.Workflow:
    """The graph of one visit; every step receives the job and the results of all steps before it.

    Its steps live in the visit's work folder, whether it runs alone or as a part of the graph of all visits.
    """
    workflow = pe.Workflow(name=job.work_folder.name, base_dir=str(job.work_folder.parent))
    done: list[tuple[pe.Node, str]] = []
    for step, interface, product in STEPS:
        node = pe.Node(interface(job=job), name=step, n_procs=job.settings.omp_nthreads, mem_gb=MEMORY_GB)
        # of the node, not of the process: in a graph of many visits, each has a log folder of its own
        node.config = {"execution": {"crashdump_dir": str(job.log_folder)}}
        workflow.add_nodes([node])
        for earlier, role in done:
            workflow.connect(earlier, "out", node, role)
        done.append((node, product))
    # whoever comes here wants the outputs written, now: what an earlier run delivered may be gone
    node.overwrite = True
    return workflow
