"""What every strategy refuses: evidence that is not finite, because sorting would rank NaN first.

require_finite(probabilities=np.array([[0.9, 0.1], [np.nan, 0.5]]))
ValueError: probabilities: 1 of 2 items hold NaN or infinity, first at position 1. ...
"""

from __future__ import annotations

import numpy as np

from tasks.strategies import Array


def require_finite(items_axis: int = 0, **evidence: Array) -> None:
    """Raise ValueError that names the evidence and its first bad item, if any value is NaN or infinite."""
    for name, values in evidence.items():
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(values.sum())
        # An overflowing sum of finite values is no fault: only then every value is looked at.
        if not finite and not np.isfinite(values).all():
            raise ValueError(_complaint(name, values, items_axis))


def _complaint(name: str, values: Array, items_axis: int) -> str:
    rows = np.moveaxis(values, items_axis, 0).reshape(values.shape[items_axis], -1)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    return (
        f"{name}: {len(bad)} of {len(rows)} items hold NaN or infinity, first at position {bad[0]}. "
        "Nothing was ranked; check the features and the model that made them."
    )
