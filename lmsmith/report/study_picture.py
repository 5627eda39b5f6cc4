"""The learning curves of a study as PNG, for slides and papers; matplotlib draws them.

Colours are those of Okabe and Ito (2008), which people with colour-blindness can tell apart. Arms
also differ in markers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from lmsmith import atomic
from lmsmith.report.study_curves import AXES, ArmCurves

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
MARKERS = "os^DvP*X"
ARMS_IN_A_ROW = 4  # of the legend


def write_picture(arms: Sequence[ArmCurves], title: str, out: Path) -> bool:
    """Writes the picture; returns whether matplotlib is installed and there is something to draw.

    Raises StorageError.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, MaxNLocator
    except ImportError:
        return False
    drawn = [arm for arm in arms if len(arm.mean)]
    if not drawn:
        return False
    n_rows = -(-len(drawn) // ARMS_IN_A_ROW)
    figure = Figure(figsize=(11, 4.2 + 0.2 * n_rows), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, (axis, word) in zip(panels, AXES.items(), strict=True):
        for arm in drawn:
            colour = COLOURS[arm.colour % len(COLOURS)]
            x, marker = arm.axes[axis], MARKERS[arm.colour % len(MARKERS)]
            panel.plot(x, arm.mean, color=colour, marker=marker, ms=4, label=arm.name)
            panel.fill_between(x, arm.low, arm.high, color=colour, alpha=0.15, linewidth=0)
        panel.set_xlabel(f"{word}s")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k, 2M
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("validation bits per byte")
    handles, names = panels[0].get_legend_handles_labels()
    # Below the panels: inside one of them it would cover curves.
    figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=ARMS_IN_A_ROW)
    figure.suptitle(title, fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    atomic.write(out, content.getvalue())
    return True
