"""Labels of points that overlap neither each other nor the points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.transforms import Bbox

from .svg import LINE, SvgFigure

NEAR, LINE_HEIGHT = 8.0, 13.0  # distances from a point, in typographic points
ROUNDS = 12  # lines up and down that are tried
FONT_SIZE = 11.5
PADDING = 1.0
POINT_SIZE = 5.0  # half of a marker

Point = tuple[float, float]


def place_labels(figure: SvgFigure, points: Sequence[Point], labels: Sequence[str]) -> None:
    """Write a label at each point: the nearest free place, with a line to it if that is far.

    Text is measured in matplotlib's font, which is wider than the fonts of most pages.

    Args:
        figure: its axes have their final limits and scales.
        points: in data coordinates.
        labels: one for each point.
    """
    axes = figure.axes
    figure.figure.draw_without_rendering()  # lays out the axes
    scale = figure.figure.dpi / 72
    inside = axes.get_window_extent()
    centers = [tuple(axes.transData.transform(point)) for point in points]
    taken = [_around(x, y, POINT_SIZE * scale) for x, y in centers]
    order = sorted(range(len(points)), key=lambda index: -centers[index][1])
    for index in order:
        text = axes.annotate(
            labels[index],
            points[index],
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=FONT_SIZE,
            annotation_clip=False,
        )
        text.set_in_layout(False)
        size = text.get_window_extent()
        x, y = centers[index]
        best: tuple[float, Bbox, Point] | None = None
        for dx, dy in _offsets(size.width / scale):
            left, bottom = x + dx * scale, y + dy * scale
            box = Bbox.from_bounds(left, bottom, size.width, size.height).padded(PADDING)
            cost = sum(box.overlaps(other) for other in taken) + 2 * (not _contains(inside, box))
            if best is None or cost < best[0]:
                best = cost, box, (dx, dy)
            if cost == 0:
                break
        assert best is not None
        _, box, (dx, dy) = best
        text.set_position((dx, dy))
        taken.append(box)
        if abs(dy) > LINE_HEIGHT:
            end = (box.x0 if dx > 0 else box.x1, (box.y0 + box.y1) / 2)
            to = axes.transData.inverted().transform(end)
            axes.plot(
                [points[index][0], to[0]], [points[index][1], to[1]], color=LINE, lw=1, zorder=0
            )


def _offsets(width: float) -> Iterator[Point]:
    """Offsets of a label's lower left corner from its point, the nearest first."""
    for step in range(ROUNDS):
        for dy in (NEAR / 2 + step * LINE_HEIGHT, -LINE_HEIGHT - step * LINE_HEIGHT):
            yield NEAR, dy
            yield -NEAR - width, dy


def _around(x: float, y: float, half: float) -> Bbox:
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return bool(
        outer.x0 <= inner.x0
        and inner.x1 <= outer.x1
        and outer.y0 <= inner.y0
        and inner.y1 <= outer.y1
    )
