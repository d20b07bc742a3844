"""``afterstroke train lesion`` from the dataset to the model folder; a second call goes on where the first was left."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_app.derivatives.write import write_table
from bids_app.errors import ExitCode, NoInputError, UsageError
from bids_app.networks.device import Device, choose_device
from bids_app.settings import Settings, TrainingSettings
from bids_app.study.folders import check_places, check_writable
from bids_app.training.own import model, out_of_fold, scores
from bids_app.training.own.cases import Case, find_cases, render_cohort
from bids_app.training.own.dataset import Dataset, preprocess, write_raw, write_splits
from bids_app.training.own.folds import Fold, case_table, make_folds, render_folds
from bids_app.training.own.planning import SMALL, Part, check_preset, late_plans, parts_of, plans_for
from bids_app.training.own.prepare import Ready, prepare_all
from bids_app.training.own.progress import Reporter, duration, reporter
from bids_app.training.own.start import Start, find_start
from bids_app.training.own.train import EPOCHS, EPOCHS_FROM_INIT, FINAL, RATE, RATE_FROM_INIT, Run, train_fold
from bids_app.training.plans import FUSIONS
from bids_app.training.record import check_record, check_result
from bids_app.wording import counted
from bids_app.workflow.tools import limit_threads

CASES = "cases.tsv"
SEEN_BEFORE = "If {} was trained on these cases or on some of them, the cross-validated scores are too good."


@dataclass(frozen=True)
class Session:
    """Everything a training knows once its scans are prepared.

    Attributes
    ----------
    settings : TrainingSettings
    dataset_name : str
        Of the BIDS dataset.
    cases : tuple of Ready
    folds : tuple of Fold
    start : Start or None
    device : Device
    """

    settings: TrainingSettings
    dataset_name: str
    cases: tuple[Ready, ...]
    folds: tuple[Fold, ...]
    start: Start | None
    device: Device

    @property
    def base(self) -> Path:
        """Folder of nnU-Net's files of this training."""
        return work_folder(self.settings)

    @property
    def epochs(self) -> int:
        return epochs_of(self.settings)

    @property
    def result(self) -> Path:
        """The model folder."""
        return self.settings.out_dir / self.settings.name


@dataclass(frozen=True)
class Network:
    """One part of the model, ready to be trained.

    Attributes
    ----------
    part : Part
    dataset : Dataset
    plans : dict
    """

    part: Part
    dataset: Dataset
    plans: dict


def work_folder(settings: TrainingSettings) -> Path:
    """Folder of everything that a training needs besides the scans."""
    return settings.work_dir / "training" / settings.name


def epochs_of(settings: TrainingSettings) -> int:
    """The epochs asked for, else the default."""
    return settings.epochs or (EPOCHS if settings.init is None else EPOCHS_FROM_INIT)


def train_lesion(settings: TrainingSettings, dry_run: bool = False) -> ExitCode:
    """Train a lesion model on the masks of a BIDS dataset.

    Parameters
    ----------
    dry_run : bool
        Print cases, problems, folds and plan, and write nothing.

    Raises
    ------
    AppError
        Whatever the user can mend.
    """
    begun = time.monotonic()
    device = choose_device(settings.device)
    start = find_start(settings.init, settings.fusion)
    check_preset(settings.fusion, settings.preset, start)
    places = Settings(settings.out_dir, settings.bids_dir, settings.work_dir)
    check_places(places)
    _check_folds(settings)
    check_result(work_folder(settings), settings.out_dir / settings.name)
    cohort = find_cases(settings)
    folds = make_folds(cohort.cases, settings.folds)
    _require_lesions(cohort.cases)
    print(render_cohort(cohort, settings.fusion), render_folds(folds, cohort.cases), sep="\n\n")
    print("", *_plan(settings, start, device), "", sep="\n", flush=True)
    if dry_run:
        return ExitCode.OK
    check_writable(places)
    limit_threads(settings.nprocs)
    with reporter() as told:
        cases = prepare_all(cohort.cases, settings, FUSIONS[settings.fusion].contrasts, told.say)
        limit_threads(settings.nprocs)
        folds = make_folds([ready.case for ready in cases], settings.folds)
        write_table(work_folder(settings) / CASES, case_table(cohort, folds))
        session = Session(settings, cohort.name, cases, folds, start, device)
        _train(session, told)
        told.say(f"{session.result}: done in {duration(time.monotonic() - begun)}")
        told.say(f"Use it with --lesion-model {session.result}")
    return ExitCode.OK


def _check_folds(settings: TrainingSettings) -> None:
    if settings.folds < 2:
        raise UsageError(
            f"--folds {settings.folds} is no cross-validation.",
            "Use --folds 2 or more; to train a single one of them, add --fold 0.",
        )
    if unknown := [fold for fold in settings.chosen_folds if not 0 <= fold < settings.folds]:
        raise UsageError(
            f"There is no fold {unknown[0]} among {settings.folds}.", f"Folds count from 0 to {settings.folds - 1}."
        )


def _require_lesions(cases: Sequence[Case]) -> None:
    if not any(case.volume_ml > 0 for case in cases):
        raise NoInputError("All masks are empty: there is no lesion to learn.", "Check --masks.")


def _plan(settings: TrainingSettings, start: Start | None, device: Device) -> list[str]:
    """The plan in words."""
    folds = ", ".join(map(str, settings.trained_folds))
    network = f"as in {start.name}, {start.network_class.rpartition('.')[2]}" if start else settings.preset or SMALL
    networks = counted(len(parts_of(settings.fusion)) * len(settings.trained_folds), "network")
    rate = RATE if start is None else RATE_FROM_INIT
    note = [f"note      {SEEN_BEFORE.format(start.name)}"] if start and not start.embedded else []
    return [
        *note,
        f"network   {network}",
        f"training  folds {folds}: {networks}, {counted(epochs_of(settings), 'epoch')} of 250 steps each, "
        f"learning rate {rate:g}",
        f"device    {device.description}",
        f"work      {work_folder(settings)}",
        f"model     {settings.out_dir / settings.name}",
    ]


def _train(session: Session, told: Reporter) -> None:
    """Datasets, networks, out-of-fold predictions, model folder."""
    _check_record(session)
    networks: list[Network] = []
    for part in parts_of(session.settings.fusion):
        # branches share their plans, so that a fusion can hold both
        networks.append(_set_up(part, session, networks[0].plans if networks else None, told))
    for fold in session.settings.trained_folds:
        for network in networks:
            train_fold(_run(network, fold, session), told)
    trained = tuple(
        fold for fold in range(len(session.folds)) if all(_run(network, fold, session).is_done for network in networks)
    )
    seen = out_of_fold.held_out(session.cases, session.folds, trained)
    if session.settings.fusion != "late":
        _finish_network(networks[0], session.result, session, trained, seen, told)
        return
    for network in networks:
        _finish_network(network, session.result / network.part.fusion, session, trained, seen, told)
    _finish_late(networks, session, trained, seen, told)


def _check_record(session: Session) -> None:
    """Refuse to go on with other cases, folds or settings than the training was begun with.

    Raises
    ------
    ConfigError
        Naming what differs.
    """
    settings = session.settings
    content = {
        "fusion": settings.fusion,
        "preset": settings.preset or "",
        "init": settings.init or "",
        "folds": settings.folds,
        "epochs": session.epochs,
        "result": str(session.result),
        "cases": {case.label: case.fingerprint for case in session.cases},
    }
    check_record(session.base, settings.name, content)


def _set_up(part: Part, session: Session, plans: dict | None, told: Reporter) -> Network:
    """nnU-Net's dataset of one part: raw, folds, preprocessed by `plans`, or by its own if there are none yet."""
    settings = session.settings
    dataset = Dataset(session.base, part.number, f"Own{part.fusion.capitalize()}", part.channels)
    write_raw(dataset, session.cases)
    write_splits(dataset, session.folds)
    if plans is None:
        plans = plans_for(part, dataset, settings.preset, session.start, settings.nprocs)
    plans = plans | {"dataset_name": dataset.name}
    preprocess(dataset, plans, session.cases, told.say)
    return Network(part, dataset, plans)


def _run(network: Network, fold: int, session: Session) -> Run:
    start = session.start.checkpoint(network.part.fusion, fold) if session.start else None
    return Run(
        network.dataset, network.plans, fold, session.epochs, session.device.name, session.settings.nprocs, start
    )


def _facts(name: str, channels: tuple[str, ...], session: Session, trained: tuple[int, ...]) -> model.Facts:
    """What the card says, scores apart."""
    settings, start = session.settings, session.start
    rate = f"learning rate {RATE_FROM_INIT if start else RATE:g}"
    begin = f"from {start.name}, {rate}" if start else f"from random weights, {rate}"
    notes = [SEEN_BEFORE.format(start.name)] if start and not start.embedded else []
    if len(trained) == 1:
        notes.append(
            "One fold was trained: threshold and scores, and the fusion of a late model, are of the same cases."
        )
    return model.Facts(
        name=name,
        channels=channels,
        dataset=session.dataset_name,
        cases=len(session.cases),
        subjects=len({ready.case.subject for ready in session.cases}),
        recipe=f"afterstroke train lesion, fusion {settings.fusion}, {begin}: nnU-Net's trainer, "
        f"{counted(session.epochs, 'epoch')}; {settings.folds} folds by subject, balanced by lesion volume",
        folds=trained,
        notes=tuple(notes),
    )


def _finish_network(
    network: Network, folder: Path, session: Session, trained: tuple[int, ...], seen: tuple, told: Reporter
) -> None:
    """Write the folder of one network with threshold and scores in its card."""
    name = session.settings.name if folder == session.result else f"{session.settings.name}-{network.part.fusion}"
    facts = _facts(name, network.part.channels, session, trained)
    checkpoints = {fold: _run(network, fold, session).folder / FINAL for fold in trained}
    model.write_network_folder(folder, network.plans, checkpoints, facts)
    parameters = json.loads((folder / "card.json").read_text())["parameters"]
    facts = _measured(folder, facts, session, seen, session.base / "out_of_fold" / network.part.fusion, told)
    model.write_card(folder, network.plans, facts, parameters)


def _finish_late(
    networks: Sequence[Network], session: Session, trained: tuple[int, ...], seen: tuple, told: Reporter
) -> None:
    """Fit the fusions, and write the top folder of a late fusion."""
    channels = FUSIONS["late"].contrasts
    plans = late_plans(networks[0].plans, channels, f"Dataset505_{session.settings.name}")
    branches = {network.part.channels[0]: network.part.fusion for network in networks}
    folders = {contrast: session.result / place for contrast, place in branches.items()}
    facts = replace(_facts(session.settings.name, channels, session, trained), branches=branches)
    model.write_fusion_folder(session.result, plans, dict.fromkeys(trained), folders, facts)
    logits = session.base / "out_of_fold" / "logits"
    fusions = dict(out_of_fold.fit_fusions(session.result, seen, session.device, logits))
    model.write_fusion_folder(session.result, plans, fusions, folders, facts)
    parameters = json.loads((session.result / "card.json").read_text())["parameters"]
    # the fusion of a fold was fitted to the other folds there are
    target = session.base / "out_of_fold" / f"late_{'_'.join(map(str, trained))}"
    facts = _measured(session.result, facts, session, seen, target, told)
    model.write_card(session.result, plans, facts, parameters)


def _measured(
    folder: Path, facts: model.Facts, session: Session, seen: tuple, target: Path, told: Reporter
) -> model.Facts:
    """The facts with threshold and cross-validated scores."""
    probabilities: Mapping[str, Path] = out_of_fold.predict_held_out(folder, seen, session.device, target)
    thresholds = scores.choose_thresholds(seen, probabilities)
    table = scores.summary(scores.score_cases(seen, probabilities, thresholds.by_fold))
    told.say(f"{facts.name}: threshold {thresholds.all:g}; cross-validated scores:\n{scores.render(table)}")
    return replace(facts, threshold=thresholds.all, scores=table)
