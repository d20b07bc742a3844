"""Thin nipype interfaces around the steps, which are in ``stages.py``, ``explanation.py`` and ``deliver.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits

from bids_app.workflow import stages, tools
from bids_app.workflow.deliver import deliver
from bids_app.workflow.explanation import explain
from bids_app.workflow.job import leave_error


class _Input(BaseInterfaceInputSpec):
    job = traits.Any(mandatory=True, desc="the visit and how to process it")


class _Output(TraitedSpec):
    out = traits.Any(desc="what the step made, a frozen dataclass")


class _Step(SimpleInterface):
    """Calls ``step(inputs, folder)``, and keeps the sentence of an error where the run finds it."""

    input_spec = _Input
    output_spec = _Output
    step: Callable[[Any, Path], Any]

    def _run_interface(self, runtime):
        tools.limit_threads(self.inputs.job.settings.omp_nthreads)
        try:
            self._results["out"] = type(self).step(self.inputs, Path(runtime.cwd))
        except Exception as error:  # nipype would make text of it, traceback and all
            leave_error(self.inputs.job, error)
            raise
        return runtime


class _AfterPrepare(_Input):
    prepared = traits.Any(mandatory=True)


class _AfterPose(_AfterPrepare):
    posed = traits.Any(mandatory=True)


class _AfterSegment(_AfterPose):
    segmented = traits.Any(mandatory=True)


class _AfterAlign(_AfterSegment):
    aligned = traits.Any(mandatory=True)


class _AfterNormalize(_AfterAlign):
    normalized = traits.Any(mandatory=True)


class _AfterExplain(_AfterNormalize):
    anomalies = traits.Any(mandatory=True)


class Prepare(_Step):
    """Headers, brain mask, bias field, FLAIR on T1w."""

    step = staticmethod(lambda i, folder: stages.prepare(i.job, folder))


class Pose(_Step):
    """Rigid alignment with MNI."""

    input_spec = _AfterPrepare
    step = staticmethod(lambda i, folder: stages.pose(i.prepared, folder))


class Segment(_Step):
    """Lesions."""

    input_spec = _AfterPose
    step = staticmethod(lambda i, folder: stages.segment(i.job, i.prepared, i.posed, folder))


class Align(_Step):
    """Affine alignment with MNI."""

    input_spec = _AfterSegment
    step = staticmethod(lambda i, _: stages.align(i.job, i.prepared, i.posed, i.segmented))


class Normalize(_Step):
    """Standard spaces."""

    input_spec = _AfterAlign
    step = staticmethod(
        lambda i, folder: stages.normalize(i.job, i.prepared, i.posed, i.segmented, i.aligned, folder)
    )


class Explain(_Step):
    """Healthy twin and anomaly map."""

    input_spec = _AfterNormalize
    step = staticmethod(
        lambda i, folder: explain(i.job, i.prepared, i.segmented, i.aligned, i.normalized, folder)
    )


class Deliver(_Step):
    """Derivatives, tables and the record."""

    input_spec = _AfterExplain
    step = staticmethod(
        lambda i, _: deliver(
            i.job,
            i.prepared,
            i.posed,
            stages.locate(i.segmented, i.normalized, i.aligned),
            i.normalized,
            i.aligned,
            stages.locate_findings(i.anomalies, i.normalized),
        )
    )
