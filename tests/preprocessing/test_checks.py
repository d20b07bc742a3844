"""The verdict on a registration, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_app.preprocessing.checks import Check, Limits, Measured, first_accepted

LIMITS = Limits("A to B", "A over B", overlap=0.85, least_overlap=0.6, nearby=1.05, highest_nearby=2.0)
GOOD = Measured(0.95, 0.3, nearby=0.8, elsewhere=0.4)
BESIDE = Measured(0.95, 0.2, nearby=1.3, elsewhere=0.5)
TURNED = Measured(0.95, 0.2, nearby=0.9, elsewhere=2.0)


def way(result, calls: list | None = None):
    def call():
        if calls is not None:
            calls.append(result)
        if isinstance(result, Exception):
            raise result
        return result

    return call


def itself(found):
    return found


# ------------------------------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("measured", "status"),
    [
        (GOOD, "accepted"),
        (replace(GOOD, similarity=0.05), "accepted"),  # another contrast: not the number counts, but the peak
        (BESIDE, "doubtful"),
        (replace(GOOD, overlap=0.8), "doubtful"),
        (replace(GOOD, elsewhere=0.8), "doubtful"),
        (replace(BESIDE, nearby=2.5), "failed"),
        (TURNED, "failed"),
        (replace(GOOD, overlap=0.5), "failed"),
        (replace(GOOD, overlap=np.nan), "failed"),
        (replace(GOOD, nearby=np.nan, elsewhere=np.nan), "failed"),
    ],
)
def test_there_are_three_verdicts(measured, status):
    assert measured.status(LIMITS) == status


def test_the_first_way_that_is_accepted_is_taken_and_no_other_is_tried():
    calls = []
    found, check = first_accepted([way(GOOD, calls), way(BESIDE, calls)], itself, LIMITS)
    assert (found, calls) == (GOOD, [GOOD])
    sentence = "A to B: accepted (tissue overlap 0.95, local correlation 0.30)."
    assert check == Check("accepted", 0.95, 0.3, sentence, 0.8, 0.4)


@pytest.mark.parametrize("first", [BESIDE, TURNED, RuntimeError("no overlap")])
def test_whatever_is_not_accepted_is_tried_another_way(first):
    found, check = first_accepted([way(first), way(GOOD)], itself, LIMITS)
    assert found is GOOD
    assert check.status == "accepted"


@pytest.mark.parametrize("ways", [(BESIDE, TURNED), (TURNED, BESIDE), (TURNED, replace(BESIDE, similarity=0.1))])
def test_what_is_doubtful_is_better_than_what_failed(ways):
    found, check = first_accepted([way(each) for each in ways], itself, LIMITS)
    assert found.nearby == 1.3
    assert check.status == "doubtful"
    assert check.usable
    assert "it fits better some 8 to 16 mm or degrees away" in check.sentence
    assert check.sentence.endswith("Look at A over B.")


def test_of_ways_that_all_fail_the_most_similar_is_told_with_what_was_missed():
    worse = replace(TURNED, similarity=0.1)
    found, check = first_accepted([way(worse), way(TURNED)], itself, LIMITS)
    assert found is TURNED
    assert not check.usable
    assert check.sentence == (
        "A to B: failed, turned by 90 or 180 degrees it fits nearly as well "
        "(tissue overlap 0.95, local correlation 0.20)."
    )


def test_ways_that_break_off_are_a_failed_check_in_words_that_stay_the_same():
    """ITK's errors hold addresses of memory, which change from run to run."""
    itk = RuntimeError("Exception in SimpleITK:\nITK ERROR: Metric(0x55a5941d99d0): All samples outside.")
    found, check = first_accepted([way(itk), way(itk)], itself, LIMITS)
    assert found is None
    assert (check.status, check.usable) == ("failed", False)
    assert np.isnan([check.overlap, check.similarity]).all()
    assert check.sentence == "A to B: failed, the images could not be compared (All samples outside)."


def test_a_measure_that_breaks_off_is_a_failed_way():
    def broken(found):
        raise RuntimeError("too small")

    assert not first_accepted([way(GOOD)], broken, LIMITS)[1].usable


def test_other_errors_are_not_hidden():
    with pytest.raises(TypeError):
        first_accepted([way(TypeError("a mistake in the code"))], itself, LIMITS)
