"""Writes docs/outputs.md, docs/options.md and the tables of docs/models.md from the App: python docs/generate.py"""

from __future__ import annotations

import json
import re
from pathlib import Path

from bids_app.cli_parser import bids_parser, case_parser, options_markdown
from bids_app.cli_training import WHAT, training_parser
from bids_app.derivatives import names
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.description import DISCLAIMER
from bids_app.derivatives.names import ScanName
from bids_app.networks.registry import ANOMALY, LESION, embedded_models
from bids_app.settings import DEFAULT_SPACE

T1W = ScanName.parse("sub-01_ses-1_T1w.nii.gz")
FLAIR = ScanName.parse("sub-01_ses-1_FLAIR.nii.gz")


PROBLEMS = """\
| code | meaning |
|---|---|
| `several-t1w`, `several-flair` | one of several was chosen |
| `no-t1w` | neither a T1w nor a FLAIR is left to process, or the lesion model needs the T1w that there is not |
| `not-downloaded`, `dangling-link`, `empty-file` | the scan is listed, and its content is not here |
| `invalid-name`, `invalid-sidecar` | the BIDS validator refuses a scan's name (an error), or its sidecar (told only) |
| `standard-space` | the scan is a copy in a standard space: volumes are those of the brain in that space |
| `processed-scan` | the scan was processed before (`desc-`), and there is no raw one |
| `output-blocked` | a file is where a folder of the outputs belongs |
| `no-flair` | what looks like a FLAIR is not used (the plan says why), or the lesion model needs one |
| `flair-alone` | there is no T1w |
| `flair-unusable`, `flair-misaligned` | the FLAIR was treated as missing |
| `not-reused`, `no-inverse` | a file of `--derivatives` was not used |
| `derivatives-unused`, `derivatives-of-nobody` | in the plan: a folder of `--derivatives` that serves no \
visit, or holds participants whom the dataset does not have |
| `masks-unread` | in the plan of a large study: the lesion masks drawn by hand have not been judged yet |
| `mask-not-used` | a file that looks like a lesion mask was not used; the plan says why |
| `several-masks` | more than one lesion mask |
| `empty-mask` | the lesion mask drawn by hand is empty: a brain without lesion |
| `mask-values`, `mask-too-large`, `mask-elsewhere`, `mask-grid`, `mask-side` | a mask that was given is \
[doubtful](usage.md#reuse-what-you-have): its values, size, place, grid, or which side is left |
| `model-assumption` | the model does not say everything about itself |
| `model-input-other` | `--lesion-input` gave the lesion model something else than its card names |
| `model-input-apart` | T1w and FLAIR lie on one grid and were given as they are, but the registration moves the FLAIR |
| `model-input-reused` | a reused T1w took the place of the raw one that the model wants: it lies on another grid |
| `no-anomaly-map` | no anomaly model ran: its contrast is missing, affine alignment failed, or memory did not suffice |
| `anomaly-part` | the anomaly model's scan (a FLAIR beside a T1w) does not show the whole brain |
| `anomaly-threshold` | other steps of the anomaly model than those that its threshold was measured with |
| `lesion-outside-brain` | over 10 % of the lesion lies outside the brain mask |
| `flair-registration-doubtful`, `pose-registration-doubtful` | the alignment is used, but look at it |
| `affine-registration-doubtful` | the same of the affine alignment that the anomaly map rests on |
| `mni152nlin2009asym-registration-doubtful` or `-failed` | see `mni_registration` of the sessions table |
| `header-...` | a header was repaired or is doubtful; the sentence is in the record |
| `extreme-values` | a few voxels were far brighter or darker than all others and were clipped |
| `wrapped-values`, `negative-values` | grey values had overflowed their type, or lay below 0; both were put right |
| `contrast-mismatch` | a scan does not show the contrast that it is named after, or T1w and FLAIR look exchanged |
| `same-scan` | T1w and FLAIR are one scan under two names |
| `turned-head` | the header holds the head lying, sideways or upside down: left and right may be wrong too |"""


QUERY = """`desc-pseudohealthy` images are synthetic and called as T1w (or FLAIR) are. The App itself never takes one
for a scan; in your own scripts, ask for what you want:

```python
from bids.layout import BIDSLayout, Query

layout = BIDSLayout(OUT, validate=False, config=["bids", "derivatives"])
scans = layout.get(suffix="T1w", extension=".nii.gz", desc=[Query.NONE, "preproc"])  # not desc-pseudohealthy
```"""


FINDINGS = """**What a finding means.** The model has seen healthy brains only. It draws the brain that it would have
expected in place of this one, and a finding is a connected region of at least 30 mm3 where the two differ by more
than healthy brains and their twins differ at that place: by over three standard deviations above their mean, with an
allowance added to the deviation ([how exactly](methods.md#anomalies)).
(A model of which this was never measured has one threshold for all places.) It may be a lesion, a wide ventricle or
sulcus, but also an unusual healthy fold, an artefact, a remnant of skull, or a scanner that the model does not know.

**Expect findings in every brain, healthy ones too.** {share} of a healthy brain lies above the limits of `{name}`: of
1400 mL, {volume:.0f} mL, in {findings:.0f} findings (means of {scans} synthetic brains that it has not seen). That is
more than three deviations suggest: the limits come from brains that the model has learned from, and brains differ in
more ways than those do. Two real healthy adults had [9 findings each](benchmarks.md#healthy-adults), 2 and
3 mL in all. Expect more where a scanner or an age is unlike those that the model knows.
[Measure the limits](training_anomaly.md#the-threshold) on ten or more healthy scans of your own scanner.

![T1w, twin and map of the demo's visits, findings outlined](figures/reflect_demo.png)

T1w, healthy twin and anomaly map of [the demo](benchmarks.md#findings-in-the-demo), findings in red: the map is
brightest where the lesions are, the twin fills them in part, and a finding is larger than what caused it.

**What it does not mean.** A finding is no diagnosis and no lesion mask. `kind` compares it with the lesion mask of the
visit, which is usually the App's own: `nonlesional` does *not* mean that there is no lesion, since the lesion model may
have missed it; `lesional` means one voxel in common, and a finding may be far larger than the lesion (see
`lesion_share`). Volumes depend on the blur of the map (7 mm wide at half its height) and on the threshold: do not
compare them between models, and do not use counts or volumes of findings as an outcome, between patients or over time.
The embedded model was measured on [synthetic patients](benchmarks.md#anomalies), never on a real patient's T1w.
`region` is rough: the structure of FreeSurfer's `aseg`, in an atlas of twelve healthy heads, that holds most of the
finding. A brain without findings is not proven healthy. The twin is **synthetic**: a drawing of what is usual, not this
brain before the stroke, and no input for other pipelines."""


def visit_rows() -> list[tuple[str, str]]:
    """Every file of a visit and what it is."""
    space = DEFAULT_SPACE
    return [
        (names.preprocessed(T1W, "T1w"), "T1w: header repaired, RAS+, bias field corrected"),
        (names.brain_mask(T1W), "brain mask"),
        (names.preprocessed(FLAIR, "FLAIR"), "FLAIR on the T1w grid (where there is a FLAIR)"),
        (names.transform(FLAIR, "FLAIR", "T1w", ".txt"), "rigid transform that brings the FLAIR to the T1w"),
        (names.lesion_probability(T1W), "lesion probability, 0 to 1, from the mean of the folds' logits"),
        (names.lesion_uncertainty(T1W), "its standard deviation between folds (models of two folds or more)"),
        (names.lesion_mask(T1W), "lesion mask"),
        (names.lesion_instances(T1W), "lesions one by one, an integer each, the largest is 1"),
        (names.lesion_table(T1W), "table of the lesions"),
        (names.transform(T1W, "T1w", space), "brings images from T1w to MNI (ITK, `antsApplyTransforms -t`)"),
        (names.transform(T1W, space, "T1w"), "brings images from MNI to T1w"),
        (names.preprocessed(T1W, "T1w", space), "T1w in MNI, 1 mm"),
        (names.brain_mask(T1W, space), "brain mask in MNI"),
        (names.lesion_mask(T1W, space), "lesion mask in MNI"),
        (names.lesion_probability(T1W, space), "lesion probability in MNI"),
        (names.lesion_uncertainty(T1W, space), "its standard deviation between folds in MNI"),
        (names.lesion_instances(T1W, space), "lesions one by one in MNI, numbered as in their table"),
        (names.preprocessed(FLAIR, "FLAIR", space), "FLAIR in MNI (where there is a FLAIR)"),
    ]


def anomaly_rows() -> list[tuple[str, str]]:
    """The files that an anomaly model adds to a visit."""
    space = DEFAULT_SPACE
    return [
        (names.anomaly_map(T1W), "how far the brain is from its healthy twin, 0 to 1"),
        (names.healthy_twin(T1W, "T1w"), "the twin: synthetic, in the grey values of the T1w; not for measuring"),
        (names.anomaly_mask(T1W), "where the map reaches the threshold of its place, in findings of 30 mm3 and more"),
        (names.findings(T1W), "findings one by one, an integer each, the largest is 1"),
        (names.findings_table(T1W), "table of the findings"),
        (names.anomaly_map(T1W, space), "the map in MNI"),
        (names.healthy_twin(T1W, "T1w", space), "the twin in MNI"),
        (names.anomaly_mask(T1W, space), "the thresholded map in MNI"),
    ]


def flair_rows() -> list[tuple[str, str]]:
    """The files of a visit without T1w whose names differ from those of other visits."""
    space = DEFAULT_SPACE
    return [
        (names.preprocessed(FLAIR, "FLAIR", "FLAIR"), "FLAIR: header repaired, RAS+, bias field corrected"),
        (names.brain_mask(FLAIR, "FLAIR"), "brain mask"),
        (names.lesion_probability(FLAIR, "FLAIR"), "lesion probability, 0 to 1, from the mean of the folds' logits"),
        (names.lesion_uncertainty(FLAIR, "FLAIR"), "its standard deviation between folds"),
        (names.lesion_mask(FLAIR, "FLAIR"), "lesion mask"),
        (names.lesion_instances(FLAIR, "FLAIR"), "lesions one by one"),
        (names.lesion_table(FLAIR, "FLAIR"), "table of the lesions"),
        (names.transform(FLAIR, "FLAIR", space), "brings images from the FLAIR to MNI"),
        (names.transform(FLAIR, space, "FLAIR"), "brings images from MNI to the FLAIR"),
        (names.preprocessed(FLAIR, "FLAIR", space), "FLAIR in MNI, 1 mm"),
    ]


def subject_rows() -> list[tuple[str, str]]:
    """Files of a subject that belong to no single visit."""
    return [
        (names.sessions_table("01"), "one row per session: volumes, counts, scanner, checks of the registrations"),
        (names.visit_record("01", "1"), "what the visit was made from, with checksums, and how it ended"),
        (names.raw_participants("01"), "this participant's row of the raw table"),
        (names.log_folder("01") / "<run>", "settings, seconds of steps, crash files of a run"),
        (
            names.log_folder("01") / "<run>" / names.model_input("01", "1", 0),
            "what the lesion model was given, one file a channel, and how it was made (with `--keep-model-input`)",
        ),
    ]


def dataset_rows() -> list[tuple[str, str]]:
    """Files of the dataset."""
    return [
        (names.DESCRIPTION, "name, version, configuration hash, links to the raw dataset and to reused ones"),
        (names.DESC_TABLE, "meaning of the `desc` entities"),
        (names.BIDSIGNORE, "names that BIDS does not know yet"),
        (names.run_log("<run>"), "what a run said, its plan, its warnings and its steps, with the time of each"),
        (names.raw_dataset("<state>"), "labels and sessions of all participants of the raw dataset, once per state of it"),
        ("sourcedata/raw", "links to the scans (only of `afterstroke case`, whose scans are in no dataset)"),
        (names.PARTICIPANTS, "group level: the raw participants table, for those that were processed"),
        (names.GROUP_SESSIONS, "group level: one row per visit"),
        (names.GROUP_LESIONS, "group level: one row per lesion"),
        (names.GROUP_FINDINGS, "group level: one row per finding of an anomaly map"),
        (names.GROUP_CLASSES, "group level: visits by class of lesion volume"),
        (names.GROUP_MISSING, "group level: who is expected and missing, and why"),
        (names.group_frequency(DEFAULT_SPACE), "group level: lesion frequency map"),
        (names.group_part("<selection>"), "group level of some labels alone: the same files, and `selection.json`"),
    ]


def findings() -> str:
    """What a finding is, with the numbers of the embedded model."""
    card = anomaly_cards()[0]
    healthy = card["healthy_scans"]
    share = healthy["above_by_place"]
    return FINDINGS.format(share=f"{share:.1%}", volume=1400 * share, name=card["name"], **healthy)


def files_table(rows: list[tuple[str, str]]) -> str:
    lines = ["| file | what |", "|---|---|"] + [f"| `{path}` | {what} |" for path, what in rows]
    return "\n".join(lines)


def columns_table(table: str) -> str:
    lines = ["| column | unit | what |", "|---|---|---|"]
    for name, entry in dictionary(table).items():
        levels = "; ".join(f"`{key}`: {value}" for key, value in entry.get("Levels", {}).items())
        what = entry["Description"] + (f" ({levels})" if levels else "")
        lines.append(f"| `{name}` | {entry.get('Units', '')} | {what} |")
    return "\n".join(lines)


def outputs() -> str:
    """The page of outputs."""
    parts = [
        "# Outputs",
        f"Written by `python docs/generate.py` from the App itself. {DISCLAIMER}",
        "Names keep the entities of the source scan (`task`, `acq`, `rec`, `run`, ...); without sessions, `ses-` falls"
        " away. Every image has a JSON sidecar with its sources and the configuration hash; those of the lesion maps"
        " also name model, checksum, threshold and device. The sidecar of a table describes its columns.",
        "## A visit",
        files_table(visit_rows()),
        "Maps from 0 to 1 are zero outside the brain and the lesion, and stored in steps of 1/1024, rounded downwards: at"
        " the model's threshold, and at 0.5, they give exactly the mask that single precision gave. Scans are stored in"
        " some 2000 to 4000 grey levels. All of them are 16-bit whole numbers with `scl_slope`, which every NIfTI reader"
        " applies. `sform` and `qform` carry code 4 in MNI (5 in other templates), 2 where a name has `space-T1w` or"
        " `space-FLAIR`, and 1 in the scan itself and its brain mask.",
        "A mask drawn by hand keeps these names; its sidecar says `Manual: true`, and there is no probability.",
        "## What differs from a healthy brain",
        "Unless `--no-anomaly`, a visit that the anomaly model can see (the embedded one sees T1w) has these as well."
        " With a model of FLAIR the twin is called `..._FLAIR`.",
        files_table(anomaly_rows()),
        QUERY,
        findings(),
        "## A visit without T1w",
        "It is processed in the space of its FLAIR, and every name says so; masks and maps in MNI are called as those"
        " of any visit, and their sidecars name the FLAIR.",
        files_table(flair_rows()),
        "## A subject",
        files_table(subject_rows()),
        "## The dataset",
        files_table(dataset_rows()),
        "In one run, some visits may use T1w and FLAIR, others one of the two. Group tables and"
        " maps take all finished visits: compare only rows with the same `channels` and `native_space`.",
        "## Columns of the lesion table",
        columns_table("lesion"),
        "## Columns of the table of findings",
        columns_table("finding"),
        "## Columns of the sessions table",
        columns_table("session"),
        "## Further columns of the group tables",
        columns_table("group"),
        "## Codes of problems",
        PROBLEMS,
    ]
    return "\n\n".join(parts) + "\n"


def options() -> str:
    """The page of options."""
    parts = [
        "# Options",
        "Written by `python docs/generate.py` from the App itself.",
        "## afterstroke BIDS_DIR OUT_DIR participant|group",
        options_markdown(bids_parser()).rstrip(),
        "## afterstroke case",
        "`afterstroke case T1W [FLAIR] OUT`, or `afterstroke case --flair-only FLAIR OUT`, with these options:",
        options_markdown(case_parser()).rstrip(),
    ]
    for what in WHAT:
        parts += [f"## afterstroke train {what}", options_markdown(training_parser(what)).rstrip()]
    return "\n\n".join(parts) + "\n"


def cards() -> list[dict]:
    """The cards of the embedded models and how many folds they have, the one for both contrasts first."""
    found = [
        json.loads((model.folder / "card.json").read_text()) | {"fold_count": len(list(model.folder.glob("fold_*")))}
        for model in embedded_models()
        if model.kind == LESION
    ]
    return sorted(found, key=lambda card: (-len(card["channels"]), card["channels"] != ["T1w"]))


def models_table() -> str:
    """How each embedded model works."""
    lines = [
        "| model | needs | folds | parameters a fold | threshold | smallest lesion, mm3 |",
        "|---|---|---|---|---|---|",
    ]
    for card in cards():
        cells = (f"`{card['name']}`", " and ".join(card["channels"]), card["fold_count"], f"{card['parameters']:,}",
                 card["threshold"], f"{card['min_volume_mm3']:.0f}")  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def scores_table() -> str:
    """What each embedded model scored on the synthetic test scans, by volume class."""
    lines = [
        "| model | lesion | scans | Dice | lesion F1 | lesions found | surface distance, mm | false, mL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for card in cards():
        for group, score in card["scores"].items():
            values = [score.get(key) for key in ("dice", "f1", "found", "assd_mm", "false_ml")]
            cells = [f"`{card['name']}`", group, score["cases"], *("" if v is None else f"{v:.2f}" for v in values)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def anomaly_cards() -> list[dict]:
    """The cards of the embedded anomaly models."""
    models = (model for model in embedded_models() if model.kind == ANOMALY)
    return [json.loads((model.folder / "card.json").read_text()) for model in models]


def anomaly_table() -> str:
    """How each embedded anomaly model works."""
    lines = [
        "| model | needs | steps | parameters | one threshold | healthy brain above it "
        "| above the limits of each place | findings in a healthy brain | measured on scans |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for card in anomaly_cards():
        healthy = card["healthy_scans"]
        cells = (f"`{card['name']}`", card["contrast"], card["steps"], f"{card['parameters']:,}",
                 f"{card['threshold']:.3f}", f"{healthy['above_threshold']:.1%}", f"{healthy['above_by_place']:.1%}",
                 f"{healthy['findings']:.1f}", healthy["scans"])  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


TABLES = {"models": models_table, "scores": scores_table, "anomalies": anomaly_table}
"""What stands in docs/models.md between ``<!-- NAME: ... -->`` and ``<!-- end -->``."""


def models() -> str:
    """The page of models, its tables written anew."""
    page = Path(__file__).with_name("models.md").read_text(encoding="utf-8")
    for name, table in TABLES.items():
        page = re.sub(rf"(<!-- {name}: .*? -->\n).*?(<!-- end -->)", rf"\g<1>{table()}\n\g<2>", page, flags=re.DOTALL)
    return page


PAGES = {"outputs.md": outputs, "options.md": options, "models.md": models}

if __name__ == "__main__":
    for name, page in PAGES.items():
        Path(__file__).with_name(name).write_text(page(), encoding="utf-8")
