"""``attendo compare``: the main job."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from attendo._errors import InvalidArgument, UnknownName
from attendo.cli.options import RecipeOptions
from attendo.comparison import (
    ATTENTION,
    MODELS,
    Cell,
    CellResult,
    Grid,
    Interval,
    Outcome,
    Summary,
    Watcher,
)
from attendo.comparison import compare as run
from attendo.comparison.environment import environment
from attendo.data import Images
from attendo.report import write_report
from attendo.report.wording import UNKNOWN, busy, is_busy, known

Many = Parameter(consume_multiple=True, negative="")


def compare(
    data: str = "digits",
    *,
    models: Annotated[tuple[str, ...], Many] = MODELS,
    attention: Annotated[tuple[str, ...], Many] = ATTENTION,
    seeds: int = 3,
    limit: int | None = None,
    image_size: int | None = None,
    stem: str | None = None,
    pretrained: Annotated[bool, Parameter(negative="")] = False,
    base: str | None = None,
    weights: Path | None = None,
    out: Path | None = None,
    jobs: int | None = None,
    workers: int = 0,
    recipe: RecipeOptions = RecipeOptions(),  # noqa: B008 - frozen
) -> int:
    """Train networks that differ in their attention alone, several times, and say whether it helps.

    Args:
        data: digits (embedded), an image folder, hfds/ID-OR-DIRECTORY, or torch/NAME. Give it first.
        models: Networks: resnet18 ..., see attendo list.
        attention: Mechanisms, with settings after a colon: se se:reduction=8. none is no attention, static a gate
            with SE's parameters that never looks at the image.
        seeds: How many times each network is trained.
        limit: Training images to keep; validation images in proportion.
        image_size: Side in pixels of what the networks see; by default what fits the data.
        stem: imagenet, stride2 or cifar; by default the network's own.
        pretrained: Start from timm's weights of the plain network.
        base: In place of --models: one finished network, of attendo or timm, into which the attention is inserted so
            that at first it changes nothing; then all are fine-tuned for the same steps.
        weights: With --base: its checkpoint, official or saved by attendo.
        out: Directory of the results; by default one for these settings under attendo-results.
        jobs: Networks trained at once; by default one on a GPU, else one per core up to 8.
        workers: Processes that read images, for each network.
        recipe: How networks are trained.
    """
    try:
        grid = Grid(
            data=data,
            models=models if base is None else (base,),
            attention=attention,
            seeds=tuple(range(seeds)),
            recipe=recipe.recipe(),
            limit=limit,
            image_size=image_size,
            stem=stem,
            pretrained=pretrained,
            insert=base is not None,
            weights=None if weights is None else str(weights),
        )
    except UnknownName:
        _refuse_swallowed_data({"--models": models, "--attention": attention})
        raise
    console = Console()
    with Screen(console, grid) as screen:
        outcome = run(grid, out, jobs=jobs, workers=workers, watcher=screen)
    spec = {"command": shlex.join(["attendo", *sys.argv[1:]]), **grid.as_dict()}
    report = outcome.directory / "report.html"
    write_report(outcome.results, spec, environment(), report)
    _show(console, outcome, report)
    return 1 if outcome.failures else 0


def _refuse_swallowed_data(options: dict[str, tuple[str, ...]]) -> None:
    """Raise the error that says where DATA goes if the last word of an option that takes several is data.

    Raises:
        InvalidArgument: it is.
    """
    for option, words in options.items():
        last = words[-1] if words else ""
        if last == "digits" or "/" in last or "\\" in last or last.startswith(("~", ".")) or Path(last).exists():
            raise InvalidArgument(
                f"compare: {option} takes every word after it, and so it took {last!r}, which looks like the data. "
                f"Give DATA first: attendo compare {shlex.quote(last)} {option} {shlex.join(words[:-1])}"
            )


class Screen(Watcher):
    """Shows what is being done and how far it is."""

    def __init__(self, console: Console, grid: Grid) -> None:
        self.console, self.grid = console, grid
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task("reading data", total=None)
        self.done = 0
        self.at: dict[Cell, int] = {}  # steps of the cells being trained

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def planned(
        self, images: Images, cells: Sequence[Cell], finished: int, seconds: float | None, directory: Path
    ) -> None:
        """Say what will be done and how long it will take."""
        self.cells = len(cells)
        say = self.progress.console.print
        say(
            f"{escape(images.name)}: {len(images.train):,} training and {len(images.validation):,} validation images "
            f"of {len(images.classes)} classes, seen at {images.image_size} x {images.image_size} pixels"
        )
        grid, recipe = self.grid, self.grid.recipe
        counts = (len(grid.models), "model"), (len(grid.attention), "attention"), (len(grid.seeds), "seed")
        say(
            f"{_counted(self.cells, 'network')} to train ({' x '.join(_counted(*count) for count in counts)}), "
            f"{_counted(recipe.epochs, 'epoch')} each"
            + (f"; {finished} {'is' if finished == 1 else 'are'} finished" if finished else "")
        )
        if seconds:
            say(f"this will take about {_duration(seconds)} here; results go to {escape(str(directory))}")
        self.steps = len(images.train) // recipe.batch_size * recipe.epochs
        self.done = finished
        self.progress.update(
            self.task, total=self.cells * self.steps, completed=finished * self.steps, description="training"
        )

    def started(self, cell: Cell) -> None:
        """Name the cell."""
        self._moved(cell, 0)

    def stepped(self, cell: Cell, step: int, steps: int) -> None:
        """Move the bar."""
        self._moved(cell, step)

    def _moved(self, cell: Cell, step: int) -> None:
        self.at[cell] = step
        words = [cell.attention for cell in self.at]
        description = f"training {', '.join(words[:4])}{' ...' if len(words) > 4 else ''}"
        steps = self.done * self.steps + sum(self.at.values())
        self.progress.update(self.task, description=escape(description), completed=steps)

    def finished(self, cell: Cell, result: CellResult) -> None:
        """Print the cell's result."""
        self.done += 1
        self.at.pop(cell, None)
        self.progress.update(self.task, completed=self.done * self.steps + sum(self.at.values()))
        name = escape(f"{cell.model} {cell.attention}, seed {cell.seed}")
        if result.accuracy is None:
            self.progress.console.print(f"[red]failed[/] {name}: {escape(result.error)}", soft_wrap=True)
        else:
            self.progress.console.print(f"{name}: {100 * result.accuracy:.1f} % in {result.train_seconds or 0:.0f} s")

    def measuring(self) -> None:
        """Say that latencies are measured."""
        self.progress.update(self.task, description="measuring latencies")


def _show(console: Console, outcome: Outcome, report: Path) -> None:
    several = len({s.model for s in outcome.summaries}) > 1
    title = "Validation accuracy in %: mean over seeds ± half of the 95 % interval"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("network" if several else "attention", overflow="fold", min_width=9)
    for heading in ("accuracy", "against none", "p (Holm)", "params", "MACs", "ms", "s/run"):
        table.add_column(heading, justify="right", no_wrap=True)
    for s in outcome.summaries:
        table.add_row(*_row(s, several))
    if outcome.summaries:
        console.print(table)
        if why := busy(outcome.summaries):
            console.print(escape(why), soft_wrap=True)
    for failure in outcome.failures:
        name = escape(f"{failure.model} {failure.attention}, seed {failure.seed}")
        console.print(f"[red]failed[/] {name}: {escape(failure.error)}", soft_wrap=True)
    console.print(escape(outcome.verdict), soft_wrap=True)
    console.print(f"report: {escape(str(report))}", soft_wrap=True)
    console.print(f"numbers: {escape(str(outcome.directory / 'results.csv'))}", soft_wrap=True)


def _row(s: Summary, several: bool) -> tuple[str, ...]:
    contrast = s.baseline
    return (
        f"{s.model} {s.attention}" if several else s.attention,
        _percent(s.accuracy),
        _percent(contrast.difference, sign=True) if contrast else "",
        "" if contrast is None or math.isnan(contrast.p_corrected) else f"{contrast.p_corrected:.2g}",
        f"{s.parameters / 1e3:,.1f} k" if s.parameters < 1e6 else f"{s.parameters / 1e6:.2f} M",
        f"{s.macs / 1e6:,.1f} M" if s.macs < 1e9 else f"{s.macs / 1e9:.2f} G",
        "busy" if is_busy(s) else f"{s.latency_ms:.2f}" if known(s.latency_ms) else UNKNOWN,
        f"{s.train_seconds:.0f}",
    )


def _percent(interval: Interval, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    mean = format(100 * interval.mean, form)
    if math.isnan(interval.low):
        return mean
    return f"{mean} ± {50 * (interval.high - interval.low):.1f}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds / 10)) * 10} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
