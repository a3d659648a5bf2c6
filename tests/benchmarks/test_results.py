"""The results page: its images, its figures at a small size, and the page against the committed figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_vits import busy_compensator, small_images, small_vit

from tocom import compress
from tocom.compression.features import pooled_features
from tocom.compression.loading.preprocessing import input_config
from tocom.quickstart.head import fit_head

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import domains  # noqa: E402
import results_measure  # noqa: E402
import results_page  # noqa: E402

torch.set_num_threads(1)


def test_the_page_is_what_the_committed_figures_make():
    result = json.loads(results_measure.RESULT.read_text(encoding="utf-8"))
    assert results_page.PAGE.read_text(encoding="utf-8") == results_page.page(result)


def test_no_picture_is_in_both_parts():
    assert not set(domains.TRAINING_PICTURES) & set(domains.TEST_PICTURES)
    split = domains.quickstart_cells()
    assert not {cell.path for cell in split.train} & {cell.path for cell in split.test}


def test_views_are_squares_that_can_be_had_again():
    entry = input_config(small_vit())
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (40, 60, 3), dtype=np.uint8)) for _ in range(2)]
    views = domains.Views(pictures, entry, 6, least=0.3)
    found = [view for view in views]
    assert len(found) == 6
    assert all(torch.equal(view, views[index]) for index, view in enumerate(found))
    # Another square of the same picture.
    assert not torch.equal(found[0], found[2])
    whole = domains.Views(pictures, entry, 6)
    assert torch.equal(whole[0], whole[2])


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small model in the backbone's place, with one compensator."""
    model = small_vit()
    busy_compensator(model).save(tmp_path / "cells-seed0.safetensors")
    monkeypatch.setattr(results_measure, "FOLDER", tmp_path)
    monkeypatch.setattr(results_measure, "SOURCES", (0, 4))
    monkeypatch.setattr(results_measure, "TARGETS", (0, 2))
    monkeypatch.setattr(
        results_measure, "compensator_path", lambda recipe, seed: tmp_path / f"{recipe}-seed{seed}.safetensors"
    )
    monkeypatch.setattr(results_measure, "backbone", lambda: model)
    return model


def test_what_is_closed_is_of_the_gap_without(small):
    images = small_images(small, 5)
    row, _ = results_measure.transfer("here", "cells", images)

    def gap(compressed):
        with torch.no_grad():
            a, b = (m.forward_head(m.forward_features(images), pre_logits=True) for m in (small, compressed))
        return 1 - torch.nn.functional.cosine_similarity(a, b)

    without, compensated = gap(compress(small, 2)), gap(compress(small, 2, compensator=busy_compensator(small)))
    assert row["gap"] == pytest.approx(float(without.mean()), rel=1e-3)
    assert row["closed"] == [pytest.approx(float(1 - compensated.mean() / without.mean()), rel=1e-3)]
    assert row["nearer"] == [float((compensated < without).float().mean())]


def test_held_out_cells_say_whether_to_use_it(small):
    images = torch.stack(list(small_images(small, 24)))
    parts = {"train": slice(0, 8), "held_out": slice(8, 16), "test": slice(16, 24)}
    labels = {part: [0, 1] * 4 for part in parts}
    dense, row = results_measure.on_cells("probe", 0, "merge", {part: images[at] for part, at in parts.items()}, labels)
    assert dense["target"] == 0
    assert "use" not in dense

    head = fit_head(pooled_features(small, images[parts["train"]]), labels["train"])

    def loss(part, compensator):
        features = pooled_features(compress(small, 2, compensator=compensator), images[parts[part]])
        return float(torch.nn.functional.cross_entropy(head(features), torch.tensor(labels[part])))

    without, compensated = loss("held_out", None), loss("held_out", busy_compensator(small))
    assert row["held_out_log_loss"]["without"] == pytest.approx(without, rel=1e-4)
    assert row["held_out_log_loss"]["compensated"] == [pytest.approx(compensated, rel=1e-4)]
    assert row["use"] is (compensated < without)
    assert row["without"]["log_loss"] == pytest.approx(loss("test", None), rel=1e-4)
    assert row["compensated"][0]["log_loss"] == pytest.approx(loss("test", busy_compensator(small)), rel=1e-4)


def test_worse_is_more_than_the_range_of_the_seeds():
    def scores(accuracy):
        return {"accuracy": accuracy, "auroc": 0.9, "log_loss": 0.3, "feature_gap": 0.001}

    def result(*compensated, use=True):
        row = {"target": 8, "without": scores(0.80), "compensated": [scores(each) for each in compensated], "use": use}
        return {"cells": [{"kind": "probe", "source": 0, "method": "merge", "rows": [row]}]}

    assert results_page.worse(result(0.78, 0.80)) == []
    assert results_page.worse(result(0.77, 0.78)) == ["linear probe at 0, merge, degree 8: accuracy worse by 0.025"]
    assert results_page.worse(result(0.83, 0.84)) == []
    assert results_page.worse(result(0.77, 0.78, use=False)) == []
