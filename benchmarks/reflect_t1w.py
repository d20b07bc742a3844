"""Does REFLECT find what is not a lesion? Wide ventricles, wide sulci and thin cortex beside lesions, in synthetic T1w.

    python -m benchmarks.reflect_t1w --data DIR --out DIR [--models FOLDER ...] [--patients N] [--pictures N] [--table]

Every patient is a synthetic brain of a test head to which one thing happened, and has a twin to whom it did not, drawn
with the same random numbers: what happened is where the two differ. A few axial slices of each patient are judged,
around what happened, and the same slices of the twin. Candidates are thresholded as healthy brains of the validation
heads say. Brains are drawn once, a model measured again only when its files changed: use another OUT after any change
of the code.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor

from benchmarks.atrophy import (
    DILATION_MM,
    LEFT,
    RIGHT,
    THINNING,
    WIDENING_MM,
    dilate_ventricles,
    draw_region,
    thin_cortex,
    widen_sulci,
)
from benchmarks.reflect_flair import CANDIDATE_SHARE, LEAST_PIXELS, yardstick
from benchmarks.unsupervised import moments
from bids_app.anomaly.model import AnomalyModel, load_anomaly_model
from bids_app.anomaly.slices import SHAPE, GreyScale
from bids_app.anomaly.usual import Usual
from bids_app.derivatives.read import read_object
from bids_app.derivatives.write import atomic, write_json
from bids_app.measures.froc import FALSE_POSITIVES, Detections, detect, froc, joined
from bids_app.training.anatomy import LesionMask
from bids_app.training.reflect.synthetic import grey_brain
from bids_app.training.store import prepare_split
from bids_app.training.synthesis.distractors import towards
from bids_app.training.synthesis.fields import blur, resize, smooth_noise, soft_step, uniform
from bids_app.training.synthesis.healthy import SPACING_MM as FINE_MM
from bids_app.training.synthesis.healthy import HealthyBrain, coarse_tissue, healthy_brain
from bids_app.training.synthesis.lesions import draw_stroke, pick_lesion, place_lesion, stratify, volume_ml
from bids_app.training.synthesis.tissue import T1W, Source, Tissue, make_source

LESION, VENTRICLES, SULCI, CORTEX = KINDS = ("lesion", "wide ventricles", "wide sulci", "thin cortex")
GROUPS = {
    "lesional": (LESION,),
    VENTRICLES: (VENTRICLES,),
    SULCI: (SULCI,),
    CORTEX: (CORTEX,),
    "non-lesional": (VENTRICLES, SULCI, CORTEX),
}
"""What sensitivity is told of, by the kinds of patient it is made of."""
STAGES = ("chronic", "subacute")
"""Lesions are dark in a T1w: cavities, and infarcts without one."""
LESION_ML = (0.5, 70.0)
"""Larger ones leave no slice without lesion around them."""

BLUR_MM = 2.0
"""Of the difference between patient and twin: wide enough to make one object of all borders of a region that moved, and
less than the blur of the anomaly map."""
MARKED = 0.03
"""Share of the grey range from which the blurred difference is marked: as much as a single border of cortex and white
matter makes when it moves by 0.4 mm, at the usual contrast of 90 grey values. What moved less can hardly be seen."""
OF_STRONGEST = 0.25
"""An object is what is marked and differs by this share of the strongest difference: else the blur of a strong change
would make it larger than a faint one, and easier to hit. The rest of what is marked is not wrong to be found."""
LEAST_ML = 0.5
"""Of what is marked, connected; less is no object, and no false positive either."""
TOUCHED, OBJECT = 1, 2
"""In the truth: what is neither to be found nor wrong to be found, and what is to be found."""

LEVELS = 5
"""Slices of a patient."""
HEALTHY = {"train": 40, "validation": 8}
"""Brains that the yardstick and the thresholds are made from."""
HEALTHY_LEVELS = range(24, 140, 6)
"""Slices of a healthy brain that its threshold is made from."""
SEEDS = {"train": 11 * 10**6, "validation": 12 * 10**6, "test": 13 * 10**6}
PICTURES = ("twin", "patient", "difference", "truth", "anomaly")
RESAMPLES, INTERVAL = 500, (2.5, 97.5)
CHANCE, Z_SCORE = "chance", "absolute z-score"
"""Rows without a network; chance tells how easily a kind of object is hit."""

Map = Callable[[np.ndarray, Sequence[int]], np.ndarray]
"""From the grey values of a brain, and some of its slices, to the anomaly of these: ``(len(slices), 192, 160)``."""


@dataclass(frozen=True)
class Case:
    """What happened to a brain.

    Attributes
    ----------
    grey : ndarray
        ``(160, 192, 160)`` uint8 of `anomaly.slices.grey_values`.
    truth : ndarray
        Of the same shape, uint8: `OBJECT`, `TOUCHED` or 0.
    """

    grey: np.ndarray
    truth: np.ndarray

    @property
    def levels(self) -> list[int]:
        """Slices to judge, spread over those that show an object; fewer than `LEVELS` if no more do."""
        shown = np.flatnonzero((self.truth == OBJECT).sum(axis=(1, 2)) >= LEAST_PIXELS)
        at = np.linspace(0.1, 0.9, LEVELS) * (len(shown) - 1)
        return sorted(set(shown[np.rint(at).astype(int)].tolist())) if len(shown) else []


@dataclass(frozen=True)
class Family:
    """A healthy brain and all that could happen to it.

    Attributes
    ----------
    head : str
    twin : ndarray
        Grey values of the healthy brain.
    cases : mapping of str to Case
        By kind.
    """

    head: str
    twin: np.ndarray
    cases: Mapping[str, Case]

    def save(self, path: Path) -> None:
        arrays = {f"{part} {kind}": getattr(case, part) for kind, case in self.cases.items() for part in vars(case)}
        with atomic(path) as whole:
            np.savez_compressed(whole, head=self.head, twin=self.twin, **arrays)

    @classmethod
    def load(cls, path: Path) -> Family:
        with np.load(path) as arrays:
            cases = {kind: Case(arrays[f"grey {kind}"], arrays[f"truth {kind}"]) for kind in KINDS}
            return cls(str(arrays["head"]), arrays["twin"], cases)


def draw_family(source: Source, lesions: Sequence[LesionMask], seed: int) -> Family:
    """All patients that share a twin."""
    twin = _drawn(source, seed)
    rng = np.random.default_rng(seed)  # of what happens: the scans' own random numbers are those of the twin
    side = (LEFT, RIGHT)[rng.integers(2)]
    sides = (side,) if rng.random() < 0.5 else (LEFT, RIGHT)
    head = source.head
    deformed = {
        VENTRICLES: dilate_ventricles(head, sides, rng.uniform(*DILATION_MM)),
        SULCI: widen_sulci(head, draw_region(head, side, rng), rng.uniform(*WIDENING_MM)),
        CORTEX: thin_cortex(head, draw_region(head, side, rng), rng.uniform(*THINNING)),
    }
    stage = STAGES[rng.integers(len(STAGES))]
    lesion = focal_case(source, twin, stratify(lesions), stage, seed)
    changed = {kind: _drawn(source, seed, deform=change.at(twin.points)) for kind, change in deformed.items()}
    cases = {kind: case_of(brain, twin) for kind, brain in changed.items()}
    return Family(head.name, patient_grey(twin, twin), {LESION: lesion, **cases})


def _drawn(source: Source, seed: int, **change) -> HealthyBrain:
    return healthy_brain(source, Generator().manual_seed(seed), **change)


def focal_case(
    source: Source, twin: HealthyBrain, strata: Sequence[Sequence[LesionMask]], stage: str, seed: int
) -> Case:
    """The twin with a lesion; `seed` is that of the twin."""
    rng = Generator().manual_seed(seed + 1)
    mask = place_visible(source, coarse_tissue(source, twin.points), strata, rng)
    sick = _drawn(source, seed, paint=partial(paint_lesion, mask=mask, stage=stage, rng=rng))
    return case_of(sick, twin, resize(mask, SHAPE)[0, 0] > 0.5)


def place_visible(source: Source, tissue: Tissue, strata: Sequence[Sequence[LesionMask]], rng: Generator) -> Tensor:
    """A lesion in the brain, ``(1, 1, z, y, x)`` at 2 mm, 0-1; another one as long as too little of it is in tissue."""
    while True:
        mask = place_lesion(draw_stroke(pick_lesion(strata, rng), source.head, rng), tissue, rng)
        if volume_ml(mask > 0.5) >= LESION_ML[0]:
            return mask


def paint_lesion(image: Tensor, tissue: Tissue, mask: Tensor, stage: str, rng: Generator) -> Tensor:
    """A T1w at 1 mm with one lesion: `synthesis.lesions.paint_lesion` as far as a T1w is concerned, on a finer grid."""
    csf, grey, _ = tissue.means.of(T1W)
    fine = resize(mask, SHAPE)
    soft = blur(fine, 0.8)
    uneven = smooth_noise(uniform(5, 14, rng), rng, 1, SHAPE, FINE_MM)
    if stage == "subacute":
        share = soft * uniform(0.4, 0.85, rng) * (1 + 0.25 * uneven).clamp(0.3, 1.7)
        return towards(image, csf, share.clamp(max=1), -1)
    core = soft_step(blur(fine, 2.0) + 0.07 * uneven, uniform(0.35, 0.7, rng), 0.06) * soft
    rimmed = towards(image, csf + uniform(0.45, 0.95, rng) * (grey - csf), soft * uniform(0.5, 1.0, rng), -1)
    return towards(rimmed, csf + uniform(0.0, 0.25, rng) * (grey - csf), core)


def case_of(patient: HealthyBrain, twin: HealthyBrain, lesion: Tensor | None = None) -> Case:
    """Truth is the lesion's mask, or else what differs enough from the twin."""
    change = difference(patient, twin)
    marked = large(change >= 255 * MARKED)
    strong = marked & (change >= OF_STRONGEST * change.max())
    objects = strong if lesion is None else lesion.numpy()[:, ::-1] & _both(patient, twin)
    return Case(patient_grey(patient, twin), np.where(objects, OBJECT, TOUCHED * marked).astype(np.uint8))


def difference(patient: HealthyBrain, twin: HealthyBrain) -> np.ndarray:
    """How much grey values of patient and twin differ, smooth; both on the scale of the twin, ``(z, y, x)`` float32."""
    brain, (sick, healthy) = _both(patient, twin), (each.image.numpy()[:, ::-1] for each in (patient, twin))
    scale = GreyScale.of(healthy, brain)
    greys = [scale.grey(image, brain).astype(np.float32) for image in (sick, healthy)]
    return ndimage.gaussian_filter(np.abs(greys[0] - greys[1]), BLUR_MM / FINE_MM) * brain


def large(marked: np.ndarray) -> np.ndarray:
    """What is marked without components of less than `LEAST_ML`."""
    labels, _ = ndimage.label(marked)
    sizes = np.bincount(labels.ravel()) * FINE_MM**3 / 1000
    return (sizes >= LEAST_ML)[labels] & marked


def _both(patient: HealthyBrain, twin: HealthyBrain) -> np.ndarray:
    return (patient.mask & twin.mask).numpy()[:, ::-1]


def patient_grey(patient: HealthyBrain, twin: HealthyBrain) -> np.ndarray:
    """Grey values on the patient's own scale, as a user's scan is scaled."""
    image, brain = patient.image.numpy()[:, ::-1], _both(patient, twin)
    return GreyScale.of(image, brain).grey(image, brain)


@dataclass(frozen=True)
class Brains:
    """Where brains are drawn from, and kept."""

    data: Path
    out: Path

    def families(self, count: int) -> Iterator[Family]:
        """The first so many, of one head after the other."""
        paths = [self.out / "families" / f"{number:03d}.npz" for number in range(count)]
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        sources, lesions = self._split("test") if missing else ([], [])
        chosen = [lesion for lesion in lesions if LESION_ML[0] <= lesion.volume_ml <= LESION_ML[1]]
        for number, path in enumerate(paths):
            if number in missing:
                # far apart: a lesion's seed is the one after its brain's
                draw_family(sources[number % len(sources)], chosen, SEEDS["test"] + 10 * number).save(path)
                print(path, flush=True)
            yield Family.load(path)

    def healthy(self, split: str) -> Iterator[np.ndarray]:
        """Grey values of healthy brains, drawn anew each time."""
        sources, _ = self._split(split)
        sources = [source for source in sources if source.image is None]
        for number in range(HEALTHY[split]):
            yield grey_brain(sources[number % len(sources)], Generator().manual_seed(SEEDS[split] + number))

    def validation(self) -> np.ndarray:
        """Those of the validation heads, kept."""
        path = self.out / "validation.npy"
        if not path.exists():
            with atomic(path) as whole:
                np.save(whole, np.stack(list(self.healthy("validation"))))
        return np.load(path, mmap_mode="r")

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the training heads' brains, kept."""
        path = self.out / "moments.npy"
        if not path.exists():
            with atomic(path) as whole:
                np.save(whole, np.stack(moments(self.healthy("train"))))
        return tuple(np.load(path))

    def _split(self, split: str) -> tuple[list[Source], list[LesionMask]]:
        heads, lesions = prepare_split(self.data, self.out / "cache", split)
        return [make_source(head) for head in heads], lesions


def z_map(mean: np.ndarray, deviation: np.ndarray, grey: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """How unusual a voxel is at its place, without any network."""
    shown = grey[levels]
    return yardstick(np.abs(shown - mean[levels]) / deviation[levels], shown > 0)


def chance_map(grey: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Noise as smooth as an anomaly map, another for every brain."""
    noise = np.random.default_rng(int(grey.sum(dtype=np.int64))).standard_normal((len(levels), *SHAPE[1:]))
    brain = grey[levels] > 0
    return yardstick(noise, np.ones_like(brain)) * brain


def model_map(model: AnomalyModel, grey: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Anomaly of some slices as `AnomalyModel.explain` gives it for the whole brain, in less time."""
    if model.velocity.size.volumetric:
        return model.explain(grey).anomaly[levels]
    reach = model.velocity.size.context * model.card.steps  # each step looks so many slices farther
    around = np.add.outer(levels, np.arange(-reach, reach + 1))
    # windows lie side by side: their outer slices have wrong neighbours, the middle one is out of reach of these
    windows = grey[np.clip(around, 0, len(grey) - 1)]
    return model.explain(windows.reshape(-1, *grey.shape[1:])).anomaly[reach :: 2 * reach + 1]


def place_map(model: AnomalyModel, grey: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """How unusual the anomaly of some slices is where it is."""
    usual = Usual(model.usual.mean[levels], model.usual.deviation[levels])
    return np.where(grey[levels] > 0, usual.scores(model_map(model, grey, levels)), 0)


@dataclass(frozen=True)
class Row:
    """What is measured: its name, what tells its version from another, and its map."""

    name: str
    version: str
    map: Map


def rows(models: Sequence[Path], brains: Brains) -> Iterator[Row]:
    """What needs no network, and all models."""
    yield Row(CHANCE, "1", chance_map)
    yield Row(Z_SCORE, "1", partial(z_map, *brains.moments()))
    for folder in models:
        model = load_anomaly_model(folder)
        yield Row(folder.name, model.sha256, partial(model_map, model))
        if model.usual is not None:
            yield Row(f"{folder.name} by place", model.sha256, partial(place_map, model))


def candidate_threshold(function: Map, healthy: Iterable[np.ndarray]) -> float:
    """Anomaly that `CANDIDATE_SHARE` of the pixels of healthy brains reach."""
    levels = list(HEALTHY_LEVELS)
    normal = [function(grey, levels)[grey[levels] > 0] for grey in healthy]
    return float(np.quantile(np.concatenate(normal), 1 - CANDIDATE_SHARE))


def judged(anomaly: np.ndarray, truth: np.ndarray, threshold: float) -> Detections:
    """Objects and false positives of one slice; what touches any truth is no false positive."""
    labels, count = ndimage.label(truth == OBJECT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    found = detect(anomaly, np.where(truth == TOUCHED, count + 1, labels), threshold)
    return Detections(found.objects[:count][sizes >= LEAST_PIXELS], found.false_positives, 1)


def judged_family(function: Map, family: Family, threshold: float) -> dict[str, Detections]:
    """By kind, the slices of the patient together with those of the twin."""
    found = {}
    for kind, case in family.cases.items():
        levels = case.levels
        parts = [(case.grey, case.truth), (family.twin, np.zeros_like(case.truth))]
        slices = [zip(function(grey, levels), truth[levels], strict=True) for grey, truth in parts if levels]
        found[kind] = joined(judged(anomaly, truth, threshold) for anomaly, truth in chain.from_iterable(slices))
    return found


def scores(row: Row, brains: Brains, count: int) -> dict:
    """All measures of a row, with intervals over families."""
    threshold = candidate_threshold(row.map, brains.validation())
    found = [judged_family(row.map, family, threshold) for family in brains.families(count)]
    groups = {name: [joined(each[kind] for kind in kinds) for each in found] for name, kinds in GROUPS.items()}
    return {
        "name": row.name,
        "version": row.version,
        "patients": count,
        "threshold": threshold,
        "groups": {name: summary(families) for name, families in groups.items()},
    }


def summary(families: Sequence[Detections]) -> dict:
    """Sensitivity at each rate of false positives, and their mean, with limits of a bootstrap over families."""
    curve = _with_mean(families)
    rng = np.random.default_rng(0)
    draws = rng.integers(len(families), size=(RESAMPLES, len(families)))
    low, high = np.nanpercentile([_with_mean([families[i] for i in draw]) for draw in draws], INTERVAL, axis=0)
    together = joined(families)
    names = [*map(str, FALSE_POSITIVES), "mean"]
    return {
        "objects": len(together.objects),
        "images": together.images,
        "found": {name: list(map(float, v)) for name, *v in zip(names, curve, low, high, strict=True)},
    }


def _with_mean(families: Sequence[Detections]) -> np.ndarray:
    curve = froc(joined(families))
    return np.append(curve, curve.mean())


def table(measured: Iterable[Mapping]) -> Iterator[str]:
    """A row for each model and kind of object."""
    yield "| | | objects | " + " | ".join(f"found at {rate}" for rate in FALSE_POSITIVES) + " | mean |"
    yield "|---" * (len(FALSE_POSITIVES) + 4) + "|"
    for each in measured:
        for group, values in each["groups"].items():
            cells = [f"{value:.2f} ({low:.2f}-{high:.2f})" for value, low, high in values["found"].values()]
            yield f"| {each['name']} | {group} | {values['objects']} | {' | '.join(cells)} |"


def draw_pictures(family: Family, function: Map, path: Path) -> None:
    """Twin, patient, difference, truth and anomaly of a family, in the middle slice of each kind."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(KINDS), 5, figsize=(13, 3.4 * len(KINDS)), layout="constrained")
    for line, (kind, case) in zip(axes, family.cases.items(), strict=True):
        levels = case.levels or [SHAPE[0] // 2]
        level = levels[len(levels) // 2]
        healthy, sick, truth = family.twin[level], case.grey[level], case.truth[level]
        anomaly = function(case.grey, [level])[0]
        shown = (healthy, 255), (sick, 255), (np.abs(sick / 1.0 - healthy), 128), (truth, OBJECT), (anomaly, None)
        for axis, (values, top), title in zip(line, shown, PICTURES, strict=True):
            axis.imshow(values, cmap="gray", vmin=0, vmax=top)
            axis.set_title(f"{kind}: {title}, slice {level}", fontsize=7)
            axis.axis("off")
    figure.suptitle(family.head, fontsize=8)
    with atomic(path) as whole:
        figure.savefig(whole, format="png")
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what is not drawn yet, measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reflect_t1w", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--out", type=Path, required=True, help="folder for brains, pictures and scores")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="model folders")
    parser.add_argument("--patients", type=int, default=24, help="of each kind (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=0, help="of so many of the patients (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print what is measured, measure nothing")
    options = parser.parse_args(arguments)
    if len({model.name for model in options.models}) < len(options.models):
        parser.error("two of --models have the same name, by which scores are kept")
    torch.set_num_threads(1)
    folder = options.out / "scores"
    if not options.table:
        brains = Brains(options.data, options.out)
        for row in rows(options.models, brains):
            for number, family in enumerate(brains.families(options.pictures)):
                draw_pictures(family, row.map, options.out / "pictures" / row.name / f"{number:03d}.png")
            path = folder / f"{row.name}.json"
            known = read_object(path)
            if (known.get("version"), known.get("patients")) != (row.version, options.patients):
                write_json(path, scores(row, brains, options.patients))
    print("\n".join(table(json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))))


if __name__ == "__main__":
    main()
