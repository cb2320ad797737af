"""New labels must move the scores: a model or a score table of last time shows as a ranking that stands still.

    trained on 20 more labels; rank correlation 0.85, 3.5 % of predictions changed, 5 of the top 20 the same  ->  pass
    the weights have the same SHA-256 although 20 labels were added                                           ->  fail

Healthy campaigns converge: on digits (logistic regression, 480 labels) the correlation reaches 0.999 and no
prediction changes, while the top 20 still differ by 3 to 5. So the ranking counts as standing still only when the
correlation, the predictions and the top of the ranking all say so; copies are told by their exact values.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Interval

from monitoring.checks._ranks import spearman
from monitoring.evidence import About, Array, Evidence, Finding, Scores

ABOUT = About(
    "stagnant_rankings",
    why="A batch picked by scores that do not know the last labels spends money on what was already answered.",
    causes=(
        "the model was not retrained, or score read the weights of the iteration before",
        "the new labels did not reach training (frozen too early, filtered, other ids)",
        "the scores are constant: a saturated network (every probability 0 or 1: more `dropout`, or another strategy), "
        "a broken strategy, or features that are all alike",
        "the model has converged on this pool: then no_improvement tells whether more labels still pay",
    ),
    todo="Compare `sha256` and `labels` in models/head/head.json with data/inputs/previous/metrics.json, then run "
    "`dvc repro --force train`. If the model is converged, consider stopping or another strategy.",
)
LEAST = 50  # candidates: below, the overlap of the top is coarse and a correlation is mostly noise
SAME = 1e-9  # relative; scores that two different models give are further apart
SATURATED = 0.999  # confidence above which float32 probabilities of two different models may well be equal


def check(
    evidence: Evidence,
    *,
    max_correlation: Annotated[float, Interval(ge=-1, le=1)] = 0.99,
    min_churn: Annotated[float, Interval(ge=0, le=1)] = 0.005,
    max_overlap: Annotated[float, Interval(ge=0, le=1)] = 0.95,
    max_copied: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    max_flat: Annotated[float, Interval(ge=0, le=1)] = 0.9,
) -> Finding:
    """Fails for unusable, flat or copied scores, a model that is not of these labels, a ranking that stands still.

    `max_correlation` Spearman's, with the scores before; `min_churn` share of candidates whose predicted class
    changed; `max_overlap` share of the top that is the same; `max_copied` share of candidates with the very same
    score; `max_flat` share of candidates with one and the same score.
    """
    if evidence.model.labels == 0 and not evidence.trained.any():
        return ABOUT.not_applicable("There are no training labels yet, so there is no model whose ranking could move.")
    one_class = evidence.trained_classes < 2  # then every probability is 1: flat, and rightly so
    broken = _unusable(evidence) or _stale_model(evidence) or (None if one_class else _flat(evidence, max_flat))
    if broken is not None:
        return broken
    reason = _no_history(evidence)
    if reason:
        return ABOUT.not_applicable(reason)
    assert evidence.previous is not None
    common = evidence.candidates() & ~np.isnan(evidence.previous.utility)
    if common.sum() < LEAST:
        return ABOUT.not_applicable(f"Only {int(common.sum())} candidates were scored both times; {LEAST} are needed.")
    return _movement(evidence, common, max_correlation, min_churn, max_overlap, max_copied)


def _unusable(evidence: Evidence) -> Finding | None:
    scores = evidence.scores
    bad = ~np.isfinite(scores.utility) | (scores.predicted < 0) | ~np.isfinite(scores.confidence)
    if scores.utility.size and not bad.any():
        return None
    what = f"{int(bad.sum())} of {bad.size} items have no finite score or no valid probabilities."
    return ABOUT.fails(what, None, "0 items", bad=int(bad.sum()), rows=np.flatnonzero(bad)[:5])


def _flat(evidence: Evidence, max_flat: float) -> Finding | None:
    utility = evidence.scores.utility[evidence.candidates()]
    if utility.size < 2:
        return None
    share = float(np.unique(utility, return_counts=True)[1].max()) / utility.size
    if share <= max_flat or (utility.size < LEAST and share < 1.0):
        return None
    return ABOUT.fails(f"{share:.1%} of {utility.size} candidates have one and the same score.", share, max_flat)


def _stale_model(evidence: Evidence) -> Finding | None:
    now, before, labels = evidence.model, evidence.previous_model, int(evidence.trained.sum())
    if now.labels != labels:
        what = f"The model was trained on {now.labels} labels, but {labels} are in data/inputs/labels.parquet."
        return ABOUT.fails(what, now.labels, labels, sha256=now.sha256)
    if before is None or now.sha256 != before.sha256 or now.labels == before.labels:
        return None
    what = f"The weights are those of the iteration before, although labels went from {before.labels} to {now.labels}."
    return ABOUT.fails(what, 0.0, "other weights", sha256=now.sha256)


def _no_history(evidence: Evidence) -> str:
    """Why the ranking cannot be compared, "" when it can."""
    before = evidence.previous_model
    if evidence.trained_classes < 2:
        return "All training labels are of one class so far, so no ranking means anything."
    if evidence.previous is None or before is None:
        return "There is no iteration before this one to compare the ranking with."
    if before.labels == 0:
        return "The iteration before had no model (no labels yet)."
    if before.labels == evidence.model.labels:
        return f"No training label was added since the iteration before ({before.labels}), so nothing has to move."
    if before.strategy != evidence.model.strategy:
        return f"The strategy changed from {before.strategy} to {evidence.model.strategy}: another ranking."
    return ""


def _movement(
    evidence: Evidence, common: Array, max_correlation: float, min_churn: float, max_overlap: float, max_copied: float
) -> Finding:
    assert evidence.previous is not None
    now, before = evidence.scores.utility[common], evidence.previous.utility[common]
    correlation = spearman(now, before)
    churn = float(np.mean(evidence.scores.predicted[common] != evidence.previous.predicted[common]))
    copied = _copied(evidence.scores, evidence.previous, common)
    overlap = _overlap(now, before, max(len(evidence.batch.item_ids), 5))
    what = (
        f"Against the iteration before, the scores of {len(now)} candidates have rank correlation {correlation:.3f}, "
        f"{churn:.2%} of the predictions changed, {overlap:.0%} of the top is the same, {copied:.1%} are exact copies."
    )
    stands = correlation > max_correlation and churn < min_churn and overlap > max_overlap
    fine = np.isfinite([correlation, churn, overlap, copied]).all() and not stands and copied <= max_copied
    say = ABOUT.passes if fine else ABOUT.fails
    limit = f"correlation {max_correlation:g} with churn {min_churn:g} and top {max_overlap:g}; copies {max_copied:g}"
    return say(what, correlation, limit, churn=churn, overlap=overlap, copied=copied, candidates=len(now))


def _copied(now: Scores, before: Scores, common: Array) -> float:
    """Share of the unsaturated candidates with exactly the score, or exactly the confidence, of last time."""
    judged = common & (now.confidence < SATURATED)
    if judged.sum() < LEAST:
        return 0.0
    a, b = now.utility[judged], before.utility[judged]
    scores = np.mean(np.abs(a - b) <= SAME * np.abs(a))
    confidences = np.mean(now.confidence[judged] == before.confidence[judged])
    return float(max(scores, confidences))


def _overlap(now: Array, before: Array, k: int) -> float:
    """Share of the k highest that are the same; k at most a tenth, else any two rankings overlap."""
    k = max(1, min(k, len(now) // 10))
    top = set(np.argsort(-now, kind="stable")[:k].tolist())
    return len(top & set(np.argsort(-before, kind="stable")[:k].tolist())) / k
