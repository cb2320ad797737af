"""Pictures of a report: arrays in, PNG bytes out, the same bytes for the same arrays.

learning_curve(labels=[20, 40], accuracy=[0.7, 0.8], low=[0.65, 0.76], high=[0.75, 0.84], title="digits")
contact_sheet([Tile(image, "0", "active", "4  48 %"), ...])
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BLUE, GREY = "#2563eb", "#6b7280"
PALETTE = (BLUE, "#f59e0b", "#059669", "#7c3aed", "#dc2626", GREY)
#: colour of each arm's frame: distinguishable without red against green
ARM_COLOURS = {"seed": "#7c3aed", "active": "#2563eb", "control": "#f59e0b", "holdout": "#6b7280"}
TILE = 96  # pixels of an image in the contact sheet
FRAME, GAP, CAPTION, COLUMNS = 4, 8, 34, 10
HEADER = 30


@dataclass(frozen=True)
class Tile:
    """One image of a contact sheet."""

    image: Array  # (H, W, channels) uint8
    rank: int
    arm: str
    caption: str  # predicted class and confidence, "" without a model


def learning_curve(labels: Array, accuracy: Array, low: Array, high: Array, title: str) -> bytes:
    """Accuracy against training labels with its interval as a band; points that are NaN are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    known = np.isfinite(accuracy)
    if known.any():
        _draw_curve(axes, labels[known], accuracy[known], low[known], high[known])
    else:
        axes.text(0.5, 0.5, "not measured yet: no holdout labels", transform=axes.transAxes, ha="center", color=GREY)
        axes.set(xticks=[], yticks=[])
    axes.set_xlabel("training labels (seed + active + control)")
    axes.set_ylabel("accuracy on the holdout")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _draw_curve(axes: Any, labels: Array, accuracy: Array, low: Array, high: Array) -> None:
    if len(labels) > 1:
        axes.fill_between(labels, low, high, color=BLUE, alpha=0.16, linewidth=0, label="confidence interval")
    else:
        axes.errorbar(labels, accuracy, [accuracy - low, high - accuracy], color=BLUE, alpha=0.5, capsize=4)
    axes.plot(labels, accuracy, color=BLUE, marker="o", markersize=4.5, linewidth=1.6, label="accuracy")
    last, place = f"{accuracy[-1]:.1%}", (labels[-1], accuracy[-1])
    axes.annotate(last, place, xytext=(0, -14), textcoords="offset points", ha="center", color=BLUE)
    reach = max(float(labels.max()), 10.0)
    axes.set_xlim(min(0.0, float(labels.min())) - 0.02 * reach, reach * 1.06)
    bottom = float(low.min())
    axes.set_ylim(max(0.0, bottom - 0.12 * (1.02 - bottom)), 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def contact_sheet(tiles: Sequence[Tile], title: str) -> bytes:
    """Images in rank order, ten a row, framed in the colour of their arm, with the model's guess below."""
    from PIL import Image, ImageDraw, ImageFont

    columns = min(COLUMNS, max(len(tiles), 5))
    rows = max(1, -(-len(tiles) // columns))
    width, height = TILE + 2 * FRAME + GAP, TILE + 2 * FRAME + CAPTION + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + 2 * HEADER + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    fonts = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    draw.text((GAP, 7), title, fill="black", font=fonts[0])
    _legend(draw, sorted({tile.arm for tile in tiles}, key=list(ARM_COLOURS).index), fonts[1])
    for place, tile in enumerate(tiles):
        corner = GAP + place % columns * width, 2 * HEADER + place // columns * height
        _draw_tile(sheet, draw, tile, corner, fonts[1])
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _legend(draw: Any, arms: Sequence[str], font: Any) -> None:
    left = GAP
    for arm in arms:
        draw.rectangle((left, HEADER + 4, left + 12, HEADER + 16), fill=ARM_COLOURS[arm])
        draw.text((left + 18, HEADER + 2), arm, fill="black", font=font)
        left += 30 + int(draw.textlength(arm, font=font)) + 10


def _draw_tile(sheet: Any, draw: Any, tile: Tile, corner: tuple[int, int], font: Any) -> None:
    left, top = corner
    edge = TILE + 2 * FRAME
    draw.rectangle((left, top, left + edge - 1, top + edge - 1), fill=ARM_COLOURS[tile.arm])
    sheet.paste(_scaled(tile.image), (left + FRAME, top + FRAME))
    draw.text((left, top + edge + 1), f"#{tile.rank}", fill=GREY, font=font)
    draw.text((left, top + edge + 15), _fitting(draw, tile.caption, edge, font), fill="black", font=font)


def _scaled(image: Array) -> Any:
    """As large as a tile: small images by whole pixels (nearest), large ones smoothly."""
    from PIL import Image

    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")
    method = Image.Resampling.NEAREST if max(picture.size) < TILE else Image.Resampling.LANCZOS
    return picture.resize((TILE, TILE), method)


def _fitting(draw: Any, text: str, width: int, font: Any) -> str:
    """The text, its class name shortened with an ellipsis when it is too wide."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    if draw.textlength(plain, font=font) <= width:
        return plain
    name, _, share = plain.rpartition(" ")
    while name and draw.textlength(f"{name}… {share}", font=font) > width:
        name = name[:-1]
    return f"{name}… {share}"


@dataclass(frozen=True)
class Curve:
    """A learning curve with its band; all (P,)."""

    name: str
    labels: Array
    accuracy: Array
    low: Array
    high: Array


def compare_curves(curves: Sequence[Curve], title: str) -> bytes:
    """Several learning curves with their bands on one axis, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve, color in zip(curves, PALETTE * len(curves), strict=False):
        known = np.isfinite(curve.accuracy)
        axes.fill_between(
            curve.labels[known], curve.low[known], curve.high[known], color=color, alpha=0.15, linewidth=0
        )
        axes.plot(curve.labels[known], curve.accuracy[known], color=color, marker="o", markersize=3, label=curve.name)
    axes.set_xlabel("training labels")
    axes.set_ylabel("accuracy on the holdout")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)
