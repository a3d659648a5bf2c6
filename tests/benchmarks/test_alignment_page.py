"""The figures of alignments: means by class, and a page that is what the script makes of the results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import alignment_measure
import alignment_page


def test_means_are_as_of_all_cells():
    labels = np.array([0] * 400 + [1] * 600)
    values = np.where(labels == 1, 3.0, 1.0) + np.random.default_rng(0).normal(0, 0.5, 1000)
    classes = alignment_measure.Classes(labels, (0.7, 0.3))
    mean, low, high = classes.interval(values)
    assert mean == pytest.approx(0.7 * values[:400].mean() + 0.3 * values[400:].mean())
    # As many draws of each class, over and over: the interval is where nearly all of the means are.
    generator = np.random.default_rng(1)
    means = [classes.mean(np.where(labels == 1, 3.0, 1.0) + generator.normal(0, 0.5, 1000)) for _ in range(400)]
    assert high - low == pytest.approx(2 * 1.96 * np.std(means), rel=0.15)


def test_the_page_is_what_the_results_say():
    result = json.loads(alignment_measure.RESULT.read_text(encoding="utf-8"))
    engines = json.loads(alignment_page.ENGINES.read_text(encoding="utf-8"))
    assert alignment_page.PAGE.read_text(encoding="utf-8") == alignment_page.page(result, engines)
    assert alignment_page.PICTURE.is_file()


def test_what_was_not_measured_is_said():
    result = json.loads(alignment_measure.RESULT.read_text(encoding="utf-8"))
    text = alignment_page.page({**result, "cells": [], "across": []}, {})
    assert text.count("Not measured: degrees 4, 8, 12, 16, 20.") == 2
    assert "Not measured: merged, latency, int8, patches." in text


def test_what_is_worse_is_named():
    change = {"gap": [0.1, 0.05, 0.15], "recall": [-0.1, -0.2, 0.0], "log_loss": [0.0, -0.1, 0.1]}
    row = {"method": "merge", "degree": 4, "alignment": {"to": {"alone": change}}}
    assert alignment_page.against({"cells": [row]}, "gap") == ["merge, degree 4, alignment: +0.0500 to +0.1500"]
    assert alignment_page.against({"cells": [row]}, "recall") == []
    assert alignment_page.against({"cells": [row]}, "log_loss") == []
