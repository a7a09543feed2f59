"""Pictures of a run: curves over the updates, and where in the task's stages the time was spent."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREY, ORANGE = "#2563a8", "#9aa3ad", "#d9822b"

CURVES = (
    ("rollout/member_success_rate", "success of a member", True),
    ("rollout/group_reward", "reward of a member", False),
    ("rollout/progress", "progress of a member", True),
    ("rollout/group_len_mean", "steps until the group ends", False),
    ("rollout/mixed_groups", "groups with mixed outcomes", True),
    ("train/approx_kl", "KL of an update, nats per action", False),
    ("train/entropy_loss", "entropy of an action, nats", False),
    ("train/grad_norm", "gradient's norm", False),
    ("train/clip_fraction", "ratios clipped", True),
)


def plot_curves(runs: Sequence[Sequence[dict[str, Any]]]) -> bytes | None:
    """Each number over the steps as a PNG, one line per run, from rows of ``metrics.jsonl``; None without any row."""
    chosen = [curve for curve in CURVES if any(curve[0] in row for rows in runs for row in rows)]
    if not chosen:
        return None
    figure, axes = _panels(len(chosen), 3, 2.3)
    for axis, (key, title, is_share) in zip(axes, chosen, strict=True):
        for rows in runs:
            _curve(axis, rows, key, faint=len(runs) > 1)
        axis.ticklabel_format(useOffset=False)
        plain_axis(axis, title, is_share, "thousand steps")
    return png(figure)


def plot_stages(rows: Sequence[dict[str, Any]]) -> bytes | None:
    """Share of training steps with so many stages done, over the updates, as a PNG; None where the reward has no stages."""
    counted = [row for row in rows if row.get("stages")]
    if not counted:
        return None
    n_stages = max(len(row["stages"]) for row in counted)
    shares = [[(row["stages"] + [0] * n_stages)[k] / sum(row["stages"]) for row in counted] for k in range(n_stages)]
    figure = new_figure(10.5, 3.0)
    axis = figure.subplots()
    steps = [row["timesteps"] / 1000 for row in counted]
    if len(steps) == 1:  # an area needs two ends
        steps, shares = [0.0, steps[0]], [[share[0]] * 2 for share in shares]
    axis.stackplot(steps, shares, colors=stage_colours(n_stages), labels=[f"{k} done" for k in range(n_stages)])
    axis.set_xlim(steps[0], steps[-1])
    axis.set_ylim(0, 1)
    plain_axis(axis, "Steps by stages done", x_label="thousand steps")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False, reverse=True)
    return png(figure)


def plot_furthest(modes: dict[str, dict[str, Any]]) -> bytes | None:
    """How far evaluation episodes came, before and after, as a PNG; None where the reward has no stages."""
    known = {name: mode for name, mode in modes.items() if mode["before"]["n_stages"] is not None}
    if not known:
        return None
    figure, axes = _panels(len(known), max(len(known), 2), 2.6)
    for axis, (name, mode) in zip(axes, known.items(), strict=True):
        n = mode["before"]["n_stages"] + 1
        for offset, when, colour in ((-0.2, "before", GREY), (0.2, "after", BLUE)):
            furthest = mode[when]["furthest"]
            heights = [furthest.count(k) / len(furthest) for k in range(n)]
            axis.bar([k + offset for k in range(n)], heights, width=0.4, color=colour, label=when)
        plain_axis(axis, f"Furthest stage of an episode, {name}", x_label="stages done")
        axis.set_xticks(range(n))
        axis.legend(fontsize=8, frameon=False)
    return png(figure)


def plot_success(modes: dict[str, dict[str, Any]]) -> bytes:
    """Success before and after as a PNG, a line per seed."""
    figure, axes = _panels(len(modes), max(len(modes), 2), 2.8)
    for axis, (name, mode) in zip(axes, modes.items(), strict=True):
        many = len(mode["per_seed"]) > 1
        for seed in mode["per_seed"]:
            rates = [seed[when]["successes"] / seed[when]["episodes"] for when in ("before", "after")]
            axis.plot([0, 1], rates, color=GREY if many else BLUE, marker="o", markersize=4, linewidth=1)
        if many:
            pooled = [mode[when]["successes"] / mode[when]["episodes"] for when in ("before", "after")]
            axis.plot([0, 1], pooled, color=BLUE, marker="o", linewidth=2.5, label="all seeds")
            axis.legend(fontsize=8, frameon=False)
        axis.set_xticks([0, 1], ["before", "after"])
        axis.set_xlim(-0.3, 1.3)
        axis.set_ylim(0, 1)
        plain_axis(axis, f"Success, {name}")
    return png(figure)


def plot_episodes(episodes: Mapping[str, Sequence[np.ndarray]], n_columns: int = 5) -> bytes:
    """Episodes as rows of pictures, at equal distances in time, the first and the last included, as a PNG."""
    figure = new_figure(2.0 * n_columns, 2.2 * len(episodes))
    axes = figure.subplots(len(episodes), n_columns, squeeze=False)
    for row, (name, pictures) in zip(axes, episodes.items(), strict=True):
        for axis, step in zip(row, np.linspace(0, len(pictures) - 1, n_columns).round().astype(int), strict=True):
            axis.imshow(pictures[step], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
            axis.set_title(f"step {step}", fontsize=8)
        row[0].set_ylabel(name, fontsize=9)
    return png(figure)


# ---------------------------------------------------------------------- drawing


def stage_colours(n: int) -> list[tuple[float, float, float]]:
    """From grey, nothing done, to blue, everything done."""
    low, high = (0.90, 0.91, 0.92), (0.10, 0.33, 0.60)
    return [tuple(a + (b - a) * k / max(n - 1, 1) for a, b in zip(low, high, strict=True)) for k in range(n)]  # type: ignore[misc]


def new_figure(width: float, height: float) -> "Figure":
    """A figure of so many inches that needs no display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'sb3-tgrpo[libero]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: "Figure") -> bytes:
    """The figure as a file's content."""
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    return file.getvalue()


def _panels(n: int, columns: int, height: float) -> tuple["Figure", Sequence["Axes"]]:
    """A figure with a grid of ``n`` panels, and so many inches for each row of them."""
    n_rows = -(-n // columns)
    figure = new_figure(10.5, height * n_rows)
    axes = list(figure.subplots(n_rows, columns, squeeze=False).flat)
    for axis in axes[n:]:
        axis.set_visible(False)
    return figure, axes[:n]


def plain_axis(axis: "Axes", title: str, is_share: bool = True, x_label: str = "") -> None:
    """The look of all panels; a share is shown in percent."""
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.set_xlabel(x_label, fontsize=8)
    if is_share:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _curve(axis: "Axes", rows: Sequence[dict[str, Any]], key: str, faint: bool) -> None:
    """The values, and their mean over a tenth of the run where there are many."""
    points = [(row["timesteps"] / 1000, -row[key] if key == "train/entropy_loss" else row[key]) for row in rows if key in row]
    if not points:
        return
    x, y = [list(values) for values in zip(*points, strict=True)]
    width = max(len(y) // 10, 1)
    if width == 1:
        axis.plot(x, y, color=BLUE, linewidth=1.2, alpha=0.6 if faint else 1.0, marker="." if len(y) < 3 else None)
        return
    smooth = [sum(y[max(i - width, 0) : i + width + 1]) / len(y[max(i - width, 0) : i + width + 1]) for i in range(len(y))]
    if not faint:
        axis.plot(x, y, color=GREY, linewidth=0.8, alpha=0.6)
    axis.plot(x, smooth, color=BLUE, linewidth=1.6, alpha=0.6 if faint else 1.0)
