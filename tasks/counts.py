"""What became of the files of one ingest, and of the labels that came with them.

Counts(seen=6, accepted=3, duplicate=1, quarantined=2, …, reasons={"truncated": 1, "not an image": 1})
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """What became of the files of one ingest: accepted + duplicate + quarantined == seen."""

    seen: int
    accepted: int
    duplicate: int
    quarantined: int
    known: int  # of the duplicates: the same file was seen by an earlier ingest
    reasons: dict[str, int]  # kind of reason -> quarantined files, most frequent first
    quarantine: tuple[tuple[str, str], ...]  # (uri, reason)
    warnings: tuple[str, ...]  # about known labels


def count(tally: Counter[str], quarantine: list[tuple[str, str]], warnings: tuple[str, ...]) -> Counts:
    """Sum up; the kind of a reason is what stands before its first colon."""
    kinds = Counter(reason.split(":")[0] for _, reason in quarantine)
    accepted, duplicate, quarantined = (tally[k] for k in ("accepted", "duplicate", "quarantined"))
    seen = accepted + duplicate + quarantined
    reasons = dict(kinds.most_common())
    return Counts(seen, accepted, duplicate, quarantined, tally["known"], reasons, tuple(quarantine), warnings)


def settle_labels(
    before: dict[str, str], given: dict[str, set[str]], items: dict[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Known labels after an ingest, and what to say about them.

    before: item -> label so far. given: item -> labels that the source gives its bytes now. items: item -> uri.
    The source's present word counts; where it contradicts itself about the same bytes, no label is known.
    """
    labels = {item: label for item, label in before.items() if item in items}
    warnings = []
    for item in [i for i in given if i in items]:
        old = labels.pop(item, None)
        names = sorted(given[item])
        if len(names) > 1:
            warnings.append(f"{items[item]}: the same bytes are labeled {', '.join(names)}: no label is known")
            continue
        labels[item] = names[0]
        if old not in (None, names[0]):
            warnings.append(f"{items[item]}: known label changed from {old} to {names[0]}")
    return labels, tuple(warnings)


def summary(counts: Counts) -> str:
    """What an ingest did, in a few lines."""
    if not counts.seen:
        return "the source holds no files: nothing to do. Check source.path."
    known = f" ({counts.known} of them the same files as before)" if counts.known else ""
    lines = [
        f"{counts.seen} files seen: {counts.accepted} accepted, {counts.duplicate} duplicates{known}, "
        f"{counts.quarantined} quarantined"
    ]
    lines += [f"{number:7d}  {reason}" for reason, number in counts.reasons.items()]
    lines += [f"warning: {text}" for text in counts.warnings[:10]]
    if len(counts.warnings) > 10:
        lines.append(f"warning: {len(counts.warnings) - 10} more like these")
    if counts.quarantined:
        lines.append("data/pool/sightings.parquet names each quarantined file and the reason.")
    return "\n".join(lines)
