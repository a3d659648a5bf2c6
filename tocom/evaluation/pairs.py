"""Accuracy, log-loss and feature gap of every (source, target) pair of degrees, with and without the compensator.

The scale is chosen on held-out images and the figures are of test images; one image in both is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom.alignment.ridge import FeatureMap, fit_map_apart
from tocom.compensator.compensator import Compensator, model_name
from tocom.compression.features import pooled_features
from tocom.compression.surgery import compress
from tocom.errors import ModelError, RequestError
from tocom.evaluation.answers import WAYS, WITHOUT, Answers, Scores, answers_of
from tocom.evaluation.held_out import Samples, check_apart
from tocom.evaluation.verdict import FEWEST_IMAGES, Verdict, give_verdicts
from tocom.formats.families import EVERY
from tocom.system.progress import Progress, silent
from tocom.training.image_files import ImageFiles

__all__ = ["SCALES", "Evaluation", "Pair", "evaluate"]

# None at all, and what the paper chooses from: ToCom, arXiv 2408.06798, section 4.
SCALES = (0.0, 0.05, 0.08, 0.1, 0.12, 0.15)


@dataclass(frozen=True)
class Pair:
    """One source degree at one target degree; at equal degrees the compensator is nothing, and both are the same.

    Attributes:
        source: The source degree.
        target: The target degree.
        without: Scores of the test images under compression alone.
        compensated: The same with the compensator; None where there is none.
        verdict: What to do, from held-out images; None at equal degrees and with too few of them.
        aligned: Scores under an alignment instead of the compensator; None at equal degrees and where not asked for.
        both: The same on top of the compensator.
    """

    source: int
    target: int
    without: Scores
    compensated: Scores | None
    verdict: Verdict | None = None
    aligned: Scores | None = None
    both: Scores | None = None

    def ways(self) -> dict[str, Scores]:
        """Return the scores of every way that was measured."""
        known = {way: getattr(self, way) for way in WAYS}
        return {way: scores for way, scores in known.items() if scores is not None}


@dataclass(frozen=True)
class Evaluation:
    """What ``tocom evaluate`` found.

    Attributes:
        pairs: By source, then target; of the test images.
        scale: The scale in use.
        scale_chosen_by: How it was chosen, in words.
        held_out: Mean scores of the held-out images over all pairs of different degrees, per scale tried.
        images: How many of each kind: ``test``, ``held_out``.
        allowed: What the verdicts let a degree cost: share of the images, or feature gap without a classifier.
        method: ``merge`` or ``prune``.
        family: Along which the degrees are.
        provenance: What the figures are of: compensator, models, seed of the split.
        answers: By source, target and way: what was answered to each test image.
    """

    pairs: tuple[Pair, ...]
    scale: float
    scale_chosen_by: str
    held_out: Mapping[float, Scores]
    images: Mapping[str, int]
    allowed: float
    method: str
    family: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[tuple[int, int, str], Answers] = field(default_factory=dict)

    def confusions(self) -> list[dict[str, Any]]:
        """Return per source, target and way the confusion of classes; empty without a classifier."""
        known = [(key, each) for key, each in self.answers.items() if each.answer is not None]
        classes = 1 + max((int(max(each.label.max(), each.answer.max())) for _, each in known), default=0)
        return [
            {"source": source, "target": target, "way": way, "confusion": each.confusion(classes)}
            for (source, target, way), each in known
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``evaluation.json``."""
        return {
            "format": "tocom-evaluation",
            "version": 1,
            **{name: getattr(self, name) for name in ("method", "family", "scale", "scale_chosen_by", "allowed")},
            "held_out": [{"scale": scale, **asdict(scores)} for scale, scores in self.held_out.items()],
            "images": dict(self.images),
            "pairs": [asdict(pair) for pair in self.pairs],
            "confusions": self.confusions(),
            "provenance": dict(self.provenance),
        }


def evaluate(
    sources: Mapping[int, VisionTransformer],
    compensator: Compensator | None,
    input_entry: Mapping[str, Any],
    *,
    test: Samples,
    held_out: Samples = (),
    targets: Sequence[int],
    scales: Sequence[float] = SCALES,
    scale: float | None = None,
    allowed: float = 0.01,
    method: str = "merge",
    family: str = EVERY,
    align: bool = False,
    batch_size: int = 16,
    progress: Progress = silent,
) -> Evaluation:
    """Measure every (source, target) pair with and without the compensator, and say what to do at each.

    Args:
        sources: The model fine-tuned at each source degree, dense; all with a classifier or all without.
        compensator: Compensator of their backbone; None measures compression alone.
        input_entry: From :func:`tocom.compression.loading.preprocessing.input_config`.
        test: Paths and class indices that the figures are of.
        held_out: Others, that the scale and the verdicts are of. The scale is the one with the best mean accuracy over
            all pairs of different degrees, the lower log-loss on a tie; without a classifier the smallest feature gap.
        targets: Target degrees.
        scales: To choose from; 0 stands for no compensator.
        scale: Use this one and choose nothing; then ``held_out`` must be empty, and there is no verdict.
        allowed: Share of the images that a degree may answer wrongly beyond the source degree's; without a classifier
            the mean feature gap that it may have.
        method: Without a compensator: ``merge`` or ``prune``.
        family: Without a compensator: the family of schedules.
        align: Measure alignments too, alone and on top of the compensator, fitted on the held-out images; no label of
            theirs is used for that.
        batch_size: Images per forward pass.
        progress: Called with the stage, the passes done, and all passes.

    Raises:
        DataError: No images, an unreadable one, one that is in both sets, or a class that the model does not have.
        RequestError: No source or target, a scale beside held-out images, or neither of the two; alignments without
            held-out images.
        AlignmentError: Too few held-out images to fit an alignment on.
        CompensatorError: The compensator does not fit a model, or a degree is out of its range.
        ModelError: Features are not finite.
    """
    if not sources or not targets or not test:
        raise RequestError("The 'sources', 'targets' and 'test' parameters must each hold at least one entry.")
    if compensator is None:
        scale, scales = None, (0.0,)
        along = {"method": method, "family": family}
    else:
        if (scale is None) != bool(held_out):
            raise RequestError(
                "Give either 'held_out' images to choose the scale on, or the 'scale'. Got both or neither."
            )
        compensator.check_degrees(*sources, *targets)
        along = {"method": compensator.method, "family": compensator.family}
    if len({isinstance(model.head, nn.Identity) for model in sources.values()}) > 1:
        raise RequestError("The 'sources' parameter must hold models with a classifier, or models without. Got both.")
    if align and not held_out:
        raise RequestError("The 'align' parameter needs 'held_out' images to fit alignments on. Got none.")
    check_apart(held_out, test)
    pairs = [(source, target) for source in sources for target in targets]
    changed = [(source, target) for source, target in pairs if source != target]
    if held_out and (not scales or not changed):
        raise RequestError(
            "Nothing can be chosen on held-out images: every target degree is the source degree, or there are no "
            "'scales'. Name another degree."
        )
    tries = list(dict.fromkeys((0.0, *scales)))
    total = len(sources) + len(pairs) + (len(changed) if compensator else 0)
    total += len(sources) + len(tries) * len(changed) if held_out else 0
    done = 0

    def measure(samples: Samples, stage: str) -> _Measured:
        def advance() -> None:
            nonlocal done
            done += 1
            progress(stage, done, total)

        return _Measured(sources, compensator, along, samples, input_entry, batch_size, advance)

    chosen_by, tried, verdicts = "given", {}, {}
    maps: dict[tuple[int, int, str], FeatureMap] = {}
    if held_out:
        ask = measure(held_out, "choosing on held-out images")
        found = {(*pair, each): ask(*pair, each) for each in tries for pair in changed}
        tried = {each: _mean([found[(*pair, each)].scores() for pair in changed]) for each in tries if each in scales}
        scale = min(tried, key=lambda each: _rank(tried[each]))
        criterion = "feature gap" if tried[scale].accuracy is None else "accuracy, then log-loss"
        chosen_by = f"{criterion} of {len(held_out)} held-out images, none of them a test image"
        known = {WITHOUT: {pair: found[(*pair, 0.0)] for pair in changed}}
        if scale:
            known["compensated"] = {pair: found[(*pair, scale)] for pair in changed}
        for way, each in (("aligned", 0.0), *((("both", scale),) if scale else ())) if align else ():
            known[way] = {}
            for source, target in changed:
                given, aim = ask.features(source, target, each), ask.features(source, source)
                maps[source, target, way], apart = fit_map_apart(given.numpy(), aim.numpy())
                known[way][source, target] = ask.answers(source, torch.from_numpy(apart))
        if len(held_out) >= FEWEST_IMAGES:
            for source in sources:
                of = {way: {r: each for (m, r), each in rows.items() if m == source} for way, rows in known.items()}
                verdicts[source] = give_verdicts(ask(source, source, 0.0), of, allowed=allowed)
    ask = measure(test, "measuring test images")
    rows, answers = [], {}
    for source, target in pairs:
        used = scale if source != target and scale else 0.0
        of = {WITHOUT: ask(source, target, 0.0)}
        if compensator is not None:
            of["compensated"] = ask(source, target, used)
        for way in ("aligned", "both"):
            if (source, target, way) in maps:
                of[way] = ask(source, target, used if way == "both" else 0.0, maps[source, target, way])
        answers.update({(source, target, way): each for way, each in of.items()})
        verdict = verdicts.get(source, {}).get(target)
        scores = {way: each.scores() for way, each in of.items()}
        rows.append(Pair(source, target, verdict=verdict, **{way: scores.get(way) for way in WAYS}))  # type: ignore[arg-type]
    return Evaluation(
        pairs=tuple(rows),
        scale=scale or 0.0,
        scale_chosen_by=chosen_by if compensator is not None else "no compensator",
        held_out=tried if compensator is not None else {},
        images={"held_out": len(held_out), "test": len(test)},
        allowed=allowed,
        **along,
        provenance={
            "compensator_sha256": None if compensator is None else compensator.metadata.get("file_sha256"),
            "model": model_name(next(iter(sources.values()))),
        },
        answers=answers,
    )


class _Measured:
    """What models answer to one set of images; features are computed once per source, target and scale."""

    def __init__(
        self,
        sources: Mapping[int, VisionTransformer],
        compensator: Compensator | None,
        along: dict[str, str],
        samples: Samples,
        input_entry: Mapping[str, Any],
        batch_size: int,
        advance: Callable[[], None],
    ) -> None:
        self._sources, self._compensator, self._along = sources, compensator, along
        self._labels = torch.tensor([label for _, label in samples])
        self._images = ImageFiles([path for path, _ in samples], input_entry)
        self._batch_size, self._advance = batch_size, advance
        self._known: dict[tuple[int, int, float], Tensor] = {}
        for source in sources:
            self.features(source, source)

    def features(self, source: int, target: int, scale: float = 0.0) -> Tensor:
        """Return the pooled features [images, channels]; at the source degree a compensator is nothing."""
        key = (source, target, scale if source != target else 0.0)
        if key not in self._known:
            part = {"compensator": self._compensator, "source_degree": source, "scale": scale} if key[2] else {}
            at = compress(self._sources[source], target, **part, **self._along)
            found = pooled_features(at, self._images, batch_size=self._batch_size)
            if bad := int((~found.isfinite().all(dim=1)).sum()):
                raise ModelError(
                    f"Features must be finite. At degree {target}, scale {key[2]:g}, those of {bad} of {len(found)} "
                    "images are not. Check the weights, or give a smaller scale."
                )
            self._known[key] = found
            self._advance()
        return self._known[key]

    def __call__(self, source: int, target: int, scale: float, found: FeatureMap | None = None) -> Answers:
        """Return the answers at a target degree, behind a map of the features where one is given."""
        features = self.features(source, target, scale)
        return self.answers(source, features if found is None else torch.from_numpy(found.apply(features.numpy())))

    def answers(self, source: int, features: Tensor) -> Answers:
        """Return what the head makes of features [images, channels]."""
        return answers_of(features, self._sources[source].head, self.features(source, source), self._labels)


def _mean(scores: Sequence[Scores]) -> Scores:
    def mean(name: str) -> float | None:
        values = [getattr(each, name) for each in scores]
        return None if values[0] is None else sum(values) / len(values)

    return Scores(mean("feature_gap") or 0.0, mean("accuracy"), mean("log_loss"))


def _rank(scores: Scores) -> tuple[float, float]:
    """Return what the best scale has the least of."""
    if scores.accuracy is None or scores.log_loss is None:
        return scores.feature_gap, 0.0
    return -scores.accuracy, scores.log_loss
