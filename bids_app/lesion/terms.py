"""The terms on which a lesion model runs: what it is given, and how its answer becomes a mask. No network is loaded.

What neither the user nor a card says is as ``nnUNetv2_predict`` does it; of ONNX networks, as StrokeSeg does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bids_app.errors import ConfigError
from bids_app.lesion.card import NO_CARD, SILENT_CARD, read_card
from bids_app.lesion.folder import ModelFolder, is_onnx, manifest_inputs, network_file, read_folder
from bids_app.lesion.inputs import NATIVE, RIGID, LesionInput, Stated, parse_input, usual
from bids_app.lesion.outputs import lesion_output
from bids_app.settings import Settings

NNUNET = "nnU-Net"

#: By the version's number.
STROKESEG = {1: "StrokeSeg 1 (StrokeSegLab)", 2: "StrokeSeg 2"}

#: Instead of a threshold.
DECIDES = "lesion where no other class is more probable, as nnU-Net decides"


@dataclass(frozen=True)
class ModelTerms:
    """The terms on which a lesion model runs, and who set each.

    Attributes
    ----------
    input : Stated[LesionInput]
    threshold : Stated[float or None]
        Probability in (0, 1] from which a voxel is lesion; None where the model decides between several classes, as
        nnU-Net does.
    min_volume_mm3 : Stated[float]
        Smallest lesion that is kept, mm3.
    steps : str
        Whose steps lead from the input to the mask: ``nnU-Net``, or a version of StrokeSeg.
    """

    input: Stated[LesionInput]
    threshold: Stated[float | None]
    min_volume_mm3: Stated[float]
    steps: str = NNUNET

    def chosen(self, settings: Settings) -> ModelTerms:
        """The same, with what the user chose instead."""
        wanted = None if settings.lesion_input is None else parse_input(settings.lesion_input)
        option = "--lesion-input"
        if self.overruled_by(wanted):
            option = f"{option}; {self.input.source} says {self.input.value}"
        return replace(
            self,
            input=self.input.unless(wanted, option),
            threshold=self.threshold.unless(settings.threshold, "--threshold"),
            min_volume_mm3=self.min_volume_mm3.unless(settings.min_lesion_volume, "--min-lesion-volume"),
        )

    def overruled_by(self, wanted: LesionInput | None) -> bool:
        """Whether another input is asked for than the one that a card names."""
        said = self.input.source not in (NO_CARD, SILENT_CARD)
        return said and wanted is not None and wanted != self.input.value

    @property
    def threshold_in_words(self) -> str:
        """For the plan: ``threshold 0.5 (no card)``."""
        value, source = self.threshold.value, self.threshold.source
        return f"{DECIDES} ({source})" if value is None else f"threshold {value:g} ({source})"

    @property
    def input_in_words(self) -> str:
        """For the plan: what the model is given, who said so, and whose steps follow."""
        wanted, source = self.input.value, self.input.source
        if self.steps != NNUNET:
            follows = f"; then the steps of {self.steps}"
        elif wanted == usual(NATIVE):
            follows = ", as nnUNetv2_predict takes it"
        else:
            follows = ""
        return f"{wanted} ({source}): {wanted.words}{follows}"


def read_terms(path: Path, folds: tuple[str, ...] = ()) -> ModelTerms:
    """The terms of a lesion model, before the user has a say.

    Parameters
    ----------
    path, folds
        As for `model.load_models`.

    Raises
    ------
    ConfigError
        If the model is incomplete, a card is wrong, or the cards of a fusion and its branches contradict each other.
    """
    if is_onnx(path):
        return _onnx_terms(network_file(path, folds))
    folder = read_folder(path, folds)
    return terms_of(folder, wanted_input(folder))


def terms_of(folder: ModelFolder, wanted: Stated[LesionInput]) -> ModelTerms:
    """The terms of a trained-model folder, whose input is known."""
    card = read_card(folder.path, folder.path.name)
    threshold = None if _decides(folder) else 0.5
    return ModelTerms(wanted, card.stated(card.threshold, threshold), card.stated(card.min_volume_mm3, 0.0))


def wanted_input(folder: ModelFolder) -> Stated[LesionInput]:
    """What a model and its branches want to see; without a word in any card, the file as it is.

    Raises
    ------
    ConfigError
        If their cards contradict each other: they are given the same scans.
    """
    parts = [folder, *(branch for _, branch in folder.branches)]
    cards = [(part.path, read_card(part.path, part.path.name)) for part in parts]
    said = [(path, card.input) for path, card in cards if card.input]
    if len({wanted for _, wanted in said}) > 1:
        each = "; ".join(f"{path} wants {wanted}" for path, wanted in said)
        raise ConfigError(f"The cards of a fusion and its branches contradict each other: {each}.", "Correct them.")
    own = cards[0][1]
    if own.input is None and said:
        return Stated(said[0][1], f"the card of {said[0][0].name}")
    return own.stated(own.input, usual(NATIVE))


def strokeseg_version(file: Path) -> int:
    """Whose steps an ONNX network gets: models of StrokeSeg 2 come with a manifest of their inputs."""
    return 2 if manifest_inputs(file) else 1


def _onnx_terms(file: Path) -> ModelTerms:
    card, version = read_card(file.parent, file.stem), STROKESEG[strokeseg_version(file)]
    wanted = Stated(usual(RIGID), version) if card.input is None else card.stated(card.input, card.input)
    steps = f"{version}, with this App's brain extraction in place of its own"
    return ModelTerms(wanted, card.stated(card.threshold, 0.5), card.stated(card.min_volume_mm3, 0.0), steps)


def _decides(folder: ModelFolder) -> bool:
    """Whether the mask depends on other outputs than the lesion's; an impossible one is refused by the loader."""
    try:
        output, _ = lesion_output(folder.dataset, folder.path / "dataset.json")
    except ConfigError:
        return False
    return output.decides
