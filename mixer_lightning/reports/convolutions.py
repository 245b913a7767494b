"""The cost of convolutions as a page and a picture, from the rows of `mixer study convolutions`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mixer_lightning.reports import markdown

Line = Mapping[str, str]

NAMES = {
    "full": "full",
    "depthwise": "depthwise",
    "depthwise_ours": "depthwise, gradients of kernels/depthwise.py",
    "pointwise": "pointwise (k = 1)",
    "separable": "depthwise + pointwise",
}
STYLES = {
    "full": ("C3", "o-"),
    "depthwise": ("C0", "s-"),
    "depthwise_ours": ("C0", "s:"),
    "pointwise": ("C2", "-."),
    "separable": ("C1", "^-"),
}
PANELS = (("forward", "float32"), ("training", "float32"), ("forward", "bf16"), ("training", "bf16"))
MODES = {"forward": "forward", "training": "forward + backward"}


def read(path: Path, about: Mapping[str, str]) -> list[Line]:
    """The lines of the file that were measured under the conditions `about`."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [line for line in lines if all(line[key] == value for key, value in about.items())]


def fastest(lines: Iterable[Line]) -> dict[tuple[str, ...], Line]:
    """The faster memory layout of each convolution: {(width, size, kernel, operator, precision, mode): line}."""
    best: dict[tuple[str, ...], Line] = {}
    for line in lines:
        key = tuple(line[name] for name in ("width", "size", "kernel", "operator", "precision", "mode"))
        if key not in best or float(line["ms"]) < float(best[key]["ms"]):
            best[key] = line
    return best


def _numbers(lines: Iterable[Line], *names: str) -> list[tuple[int, ...]]:
    """The values that the lines have in some columns, sorted."""
    return sorted({tuple(int(line[name]) for name in names) for line in lines})


# ------------------------------------------------------------------------------------------------- page

COLUMNS = ("width", "map", "kernel", "operator", "pass", "float32, ms", "bf16, ms", "full / this", "GMAC/s")


def times(lines: Sequence[Line]) -> list[list[str]]:
    """Rows of `COLUMNS`: medians (middle half) at the faster layout; ratio and rate at the faster precision."""
    best, rows = fastest(lines), []
    for width, size, kernel in _numbers(lines, "width", "size", "kernel"):
        where = (str(width), str(size), str(kernel))
        for operator in NAMES:
            for mode in MODES:
                cells, fast = [], []
                for precision in ("float32", "bf16"):
                    line = best.get((*where, operator, precision, mode))
                    full = best.get((*where, "full", precision, mode))
                    cells.append(_milliseconds(line) if line else "-")
                    if line and full:
                        fast.append((float(line["ms"]), float(full["ms"]), line))
                if fast:
                    ms, full_ms = min(each[0] for each in fast), min(each[1] for each in fast)
                    passes = 1 if mode == "forward" else 3
                    line = fast[0][2]
                    rate = passes * int(line["macs"]) * int(line["batch_size"]) / ms / 1e6
                    cells += [f"{full_ms / ms:.2f}", f"{rate:,.1f}"]
                    shown = [str(width), f"{size}x{size}", str(kernel), operator, MODES[mode]]
                    rows.append(shown + cells)
    return rows


def _milliseconds(line: Line) -> str:
    middle, low, high = (f"{float(line[key]):.3g}" for key in ("ms", "ms_low", "ms_high"))
    return f"{middle} ({low} to {high}), {line['layout']}"


def counts(lines: Sequence[Line]) -> list[list[str]]:
    """Rows of parameters and multiply-accumulates, and how many times those of a full convolution are."""
    first = {tuple(line[key] for key in ("width", "size", "kernel", "operator")): line for line in lines}
    rows = []
    for width, size, kernel in _numbers(lines, "width", "size", "kernel"):
        full = first.get((str(width), str(size), str(kernel), "full"))
        for operator in NAMES:
            line = first.get((str(width), str(size), str(kernel), operator))
            if line and full and operator != "depthwise_ours":
                parameters, macs = int(line["parameters"]), int(line["macs"])
                times_full = f"{int(full['macs']) / macs:,.1f}"
                rows.append(
                    [
                        str(width),
                        f"{size}x{size}",
                        str(kernel),
                        operator,
                        f"{parameters:,}",
                        f"{macs / 1e6:,.2f}",
                        times_full,
                    ]
                )
    return rows


def finding(lines: Sequence[Line]) -> str:
    """What the widest and largest maps show in float32, at the smallest and the largest kernel above 1."""
    best = fastest(lines)
    width, size = _numbers(lines, "width", "size")[-1]
    kernels = [
        k for w, s, k in _numbers(lines, "width", "size", "kernel") if (w, s) == (width, size) and k > 1
    ]
    sentences = []
    for kernel in dict.fromkeys([*kernels[:1], *kernels[-1:]]):
        parts = []
        for operator in ("depthwise", "depthwise_ours", "separable"):
            times_as_long, macs = [], 0.0
            for mode in MODES:
                where = (str(width), str(size), str(kernel))
                full = best.get((*where, "full", "float32", mode))
                other = best.get((*where, operator, "float32", mode))
                if full and other:
                    macs = int(full["macs"]) / int(other["macs"])
                    times_as_long.append(f"{float(full['ms']) / float(other['ms']):.1f} ({MODES[mode]})")
            if times_as_long:
                parts.append(f"{macs:,.1f} and {' and '.join(times_as_long)} of {NAMES[operator]}")
        if parts:
            sentences.append(f"At kernel {kernel}: {'; '.join(parts)}.")
    if not sentences:
        return ""
    return (
        "How many times the multiply-accumulates, and how many times the time, a full convolution takes of another, at "
        f"width {width}, maps of {size}x{size} and in float32. {' '.join(sentences)} Where the time falls short of the "
        "arithmetic, memory and the calls themselves decide."
    )


def page(lines: Sequence[Line], *, picture: str, command: Sequence[str], commit: str | None = None) -> str:
    """The page of some measurements, all of one machine and one batch size."""
    about, batch = lines[0], lines[0]["batch_size"]
    rounds = ", ".join(sorted({line["rounds"] for line in lines}))
    clock = {"wall": "wall clock", "cpu": "processor time, as other work went on on this machine"}[
        about["clock"]
    ]
    text = [
        "# What convolutions cost",
        "",
        "Stride 1, as many channels out as in, with bias. Parameters and multiply-accumulates are closed forms. Time",
        f"is the median over rounds in which each convolution runs once, batch {batch}, in brackets the middle",
        "half, at the faster of the memory layouts. Backward is to input and weights; GMAC/s counts it as twice the",
        "forward pass, and like the ratio it is of the faster precision. By itself: in a network, caches are",
        "shared with neighbours.",
        "",
        *((markdown.FINDING, "", finding(lines)) if finding(lines) else ()),
        "",
        f"![multiply-accumulates and time over the kernel]({picture})",
        "",
        "## How it was measured",
        "",
        *markdown.provenance(
            machine=about["machine"],
            versions=dict([v.split(" ", 1) for v in about["versions"].split(", ")]),
            command=command,
            commit=commit,
        ),
        f"* Rounds: {rounds}, of at least {about['seconds']} s a measurement; {clock}",
        "",
        "## Parameters and multiply-accumulates",
        "",
        *markdown.table(
            ("width", "map", "kernel", "operator", "parameters", "MMACs an image", "MACs full / this"),
            counts(lines),
        ),
        "",
        "## Time",
        "",
        *markdown.table(COLUMNS, times(lines)),
    ]
    return "\n".join(text) + "\n"


# ---------------------------------------------------------------------------------------------- picture


def draw(path: Path, lines: Sequence[Line]) -> None:
    """A PNG: a row for each width and size, multiply-accumulates and then the times over the side of the kernel."""
    from mixer_lightning.reports.figures import new_figure, save_figure  # matplotlib: seconds

    best = fastest(lines)
    shapes = _numbers(lines, "width", "size")
    panels = [
        (m, p) for m, p in PANELS if any(line["mode"] == m and line["precision"] == p for line in lines)
    ]
    figure = new_figure(3.1 * (1 + len(panels)) + 0.6, 2.6 * len(shapes) + 0.6)
    grid = figure.subplots(len(shapes), 1 + len(panels), squeeze=False, sharex=True)
    for number, ((width, size), row) in enumerate(zip(shapes, grid, strict=True)):
        where = (str(width), str(size))
        for axes, (mode, precision) in zip(row, [("forward", ""), *panels], strict=True):
            for operator in NAMES:
                points = {
                    int(kernel): (line, float(line["ms"]), float(line["ms_low"]), float(line["ms_high"]))
                    for (w, s, kernel, name, prec, m), line in best.items()
                    if (w, s, name, m) == (*where, operator, mode) and prec == (precision or prec)
                }
                if not points or (operator == "depthwise_ours" and (not precision or mode == "forward")):
                    continue
                kernels = sorted(points)
                values = [points[k][1] if precision else int(points[k][0]["macs"]) / 1e6 for k in kernels]
                colour, style = STYLES[operator]
                if operator == "pointwise":  # of no kernel but 1: a level to compare with
                    axes.axhline(values[0], color=colour, linestyle=style, label=NAMES[operator])
                    continue
                axes.plot(kernels, values, style, color=colour, label=NAMES[operator], markersize=4)
                if precision:
                    low, high = ([points[k][i] for k in kernels] for i in (2, 3))
                    axes.fill_between(kernels, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set_yscale("log")
            axes.grid(visible=True, which="major", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.yaxis.set_minor_formatter("")
            if number == 0:
                title = f"{MODES[mode]}, {precision}, ms" if precision else "multiply-accumulates, 10⁶"
                axes.set_title(title, fontsize=9, loc="left")
            axes.set_xticks([k for (k,) in _numbers(lines, "kernel")])
            axes.tick_params(labelsize=8)
        row[0].set_ylabel(f"width {width}, map {size}x{size}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("side of the kernel", fontsize=9)
    handles, names = max(
        (axes.get_legend_handles_labels() for axes in grid.flat), key=lambda found: len(found[0])
    )
    figure.legend(handles, names, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    save_figure(figure, path)
