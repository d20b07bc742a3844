"""Sensitivity at false positives, against cases counted by hand."""

import numpy as np
import pytest

from bids_app.measures import froc as measure
from bids_app.measures.froc import Detections


def image(*spots: tuple[int, int, float]) -> np.ndarray:
    """A map with squares of 3 x 3 pixels of some anomaly."""
    values = np.zeros((40, 40))
    for row, column, value in spots:
        values[row - 1 : row + 2, column - 1 : column + 2] = value
    return values


def test_one_pixel_in_common_is_a_hit_and_a_candidate_is_as_sure_as_its_highest_pixel():
    anomaly = image((10, 10, 0.3), (30, 30, 0.6))
    anomaly[10, 11] = 0.8
    objects = np.zeros((40, 40), bool)
    objects[11, 8:10] = True  # touches the corner of the first candidate
    found = measure.detect(anomaly, objects, 0.2)
    assert found.objects.tolist() == [0.8]
    assert found.false_positives.tolist() == [0.6]
    objects = np.roll(objects, 1, axis=0)
    assert measure.detect(anomaly, objects, 0.2).objects.tolist() == [0.0]


def test_an_object_is_found_once_by_the_surest_candidate_and_a_candidate_may_find_several():
    objects = np.zeros((40, 40), np.int32)
    objects[5:35, 10] = 7
    objects[30, 12] = 3
    found = measure.detect(image((10, 10, 0.5), (30, 11, 0.9), (20, 30, 0.4)), objects, 0.2)
    assert sorted(found.objects) == [0.9, 0.9]
    assert found.false_positives.tolist() == [0.4]


def test_components_of_candidates_follow_the_connectivity():
    anomaly = np.zeros((8, 8))
    anomaly[2, 2] = anomaly[3, 3] = 0.5
    nothing = np.zeros((8, 8), bool)
    assert len(measure.detect(anomaly, nothing, 0.5, connectivity=1).false_positives) == 2
    assert len(measure.detect(anomaly, nothing, 0.5, connectivity=2).false_positives) == 1


def test_the_curve_is_interpolated_and_flat_beyond_its_end():
    # by falling anomaly: hit, false positive, hit, hit, false positive; one object is never found; two images
    detections = Detections(np.array([0.9, 0.7, 0.6, 0.0]), np.array([0.8, 0.5]), 2)
    found = measure.froc(detections, (0.0, 0.25, 0.5, 0.75, 1.0, 1.5))
    assert found == pytest.approx([0.25, 0.5, 0.75, 0.75, 0.75, 0.75])


def test_without_false_positives_all_that_is_found_counts_and_without_objects_nothing_is_said():
    assert measure.froc(Detections(np.array([0.9, 0.0]), np.zeros(0), 3), (0.25,)) == pytest.approx([0.5])
    assert measure.froc(Detections(np.zeros(2), np.zeros(0), 3), (0.25,)) == pytest.approx([0.0])
    assert np.isnan(measure.froc(Detections(np.zeros(0), np.array([0.3]), 3), (0.25,))).all()


def test_volumes_are_measured_as_slices_are():
    anomaly, objects = np.zeros((10, 10, 10)), np.zeros((10, 10, 10), bool)
    anomaly[2:4, 2:4, 2:4], objects[3:6, 3, 3] = 0.7, True
    anomaly[8, 8, 8] = 0.2
    found = measure.detect(anomaly, objects, 0.1, connectivity=3)
    assert (found.objects.tolist(), found.false_positives.tolist()) == ([0.7], [0.2])


def test_joining_counts_images_without_anything():
    nothing = measure.detect(np.zeros((5, 5)), np.zeros((5, 5), bool), 0.1)
    one = measure.detect(image((10, 10, 0.5)), image((10, 10, 1)) > 0, 0.1)
    together = measure.joined([nothing, one, nothing])
    assert (together.images, together.objects.tolist(), len(together.false_positives)) == (3, [0.5], 0)
    assert measure.joined([]).images == 0


def test_clicks_are_squares_of_eleven_pixels_cut_off_at_the_edge():
    objects = measure.click_boxes([(20, 20), (0, 39)], (40, 40))
    assert [(objects == number).sum() for number in (1, 2)] == [121, 36]
    assert objects[15, 25] == 1
    assert objects[14, 25] == 0


def test_the_released_code_counts_images_and_forgets_some():
    both = image((10, 10, 1)) + 2 * image((30, 30, 1))
    images = [
        (image((10, 10, 0.9), (20, 20, 0.8)), both),  # one of two objects: the image is found; one false positive
        (image((5, 30, 0.7)), image()),  # no object: its false positive is forgotten
        (image(), image((10, 10, 1))),  # no candidate: its object is forgotten
        (image((30, 5, 0.6)), image((10, 10, 1))),  # missed, one false positive
    ]
    assert measure.compatible_froc(images, 0.1, (0.25, 1.0)) == pytest.approx([0.5, 0.5])
    proper = measure.joined(measure.detect(a, o.astype(np.int32), 0.1) for a, o in images)
    assert measure.froc(proper, (0.25, 1.0)) == pytest.approx([0.25, 0.25])
