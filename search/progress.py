"""What a person sees: the live table, a line per event where there is no terminal, the winner."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.overview import Overview, TrialGlance
from storage.results import BestParams, WordErrorRate

Show = Callable[[Overview], None]

_COLOURS = {
    "COMPLETE": "green",
    "PRUNED": "yellow",
    "DIVERGED": "magenta",
    "FAIL": "red",
    "RUNNING": "cyan",
    "WAITING": "dim",
}
_ROWS = 20


@contextmanager
def live_view(console: Console) -> Iterator[Show]:
    """Yield a function that shows an overview: redrawn in place in a terminal, as lines of news elsewhere."""
    if not console.is_terminal:
        yield _News(console).show
        return
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        yield lambda overview: live.update(draw(overview))


def draw(overview: Overview) -> RenderableType:
    """Return the study's overview as a header, a bar and a table of its newest trials."""
    parts: list[RenderableType] = [_header(overview)]
    bar = Table.grid()  # a bar alone ends without a line break
    bar.add_row(ProgressBar(total=overview.budget, completed=overview.finished, width=60))
    parts.append(bar)
    parts.append(_trials(overview))
    parts.extend(Text(f"warning: {each}", style="yellow") for each in overview.warnings)
    parts.extend(Text(f"trial {each.number}: {each.note}", style="red") for each in _failed(overview))
    return Group(*parts)


def print_overview(console: Console, overview: Overview) -> None:
    """Print the overview once, with the log tails of failed trials."""
    console.print(draw(overview))
    for each in overview.workers:
        doing = "idle" if each.number is None else "preflight" if each.number < 0 else f"trial {each.number}"
        console.print(f"worker {each.worker}: {doing}, seen {each.seen_s_ago:.0f} s ago", highlight=False)
    for trial in _failed(overview):
        if trial.log_tail:
            console.print(f"[bold]trial {trial.number}, end of its log:[/]\n{escape(trial.log_tail)}", highlight=False)


def print_best(console: Console, best: BestParams, path: str) -> None:
    """Print the winner against baseline and teacher."""
    table = Table(title=f"study {best.study}: the best of {best.trials_finished} trials is trial {best.trial}")
    table.add_column("")
    table.add_column(f"best (trial {best.trial})", justify="right")
    table.add_column("baseline (trial 0)", justify="right")
    table.add_column("teacher", justify="right")
    baseline = best.baseline
    for key, value in best.parameters.items():
        table.add_row(key, shown(value), shown(baseline.parameters.get(key)) if baseline else "", "")
    table.add_section()
    teacher = best.teacher
    table.add_row(
        f"WER on dev, {best.dev.words} words",
        _rate(best.dev),
        _rate(baseline.dev if baseline else None),
        _rate(teacher.dev if teacher else None),
    )
    if best.test is not None:
        table.add_row(
            f"WER on test, {best.test.words} words",
            _rate(best.test),
            _rate(baseline.test if baseline else None),
            _rate(teacher.test if teacher else None),
        )
    console.print(table)
    console.print("WER in %, with its 95 % interval over utterances. Nothing was chosen by the test set.")
    console.print(f"best parameters: {path}", soft_wrap=True, highlight=False)


def shown(value: object) -> str:
    """Return a parameter's value, short enough for a table."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _rate(rate: WordErrorRate | None) -> str:
    if rate is None:
        return ""
    return f"{100 * rate.wer:.1f} [{100 * rate.interval[0]:.1f}, {100 * rate.interval[1]:.1f}]"


def _header(overview: Overview) -> Text:
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(overview.states.items()))
    text = Text(f"study {overview.name}: {overview.finished} of {overview.budget} trials finished ({counts})")
    if overview.refusal is not None:
        text.append(f"\nrefused: {overview.refusal}", style="red")
    elif overview.preflight != "done":
        text.append(f"\npreflight {overview.preflight}: data, models and the teacher's own error rate", style="cyan")
    if overview.best is not None and overview.best.wer is not None:
        text.append(f"\nbest: trial {overview.best.number} with WER {100 * overview.best.wer:.1f} %", style="green")
    if overview.trials_per_hour is not None and not overview.is_over:
        text.append(f"\n{overview.trials_per_hour:.0f} trials an hour, about {_time(overview.seconds_left)} left")
    return text


def _trials(overview: Overview) -> Table:
    table = Table(box=None, pad_edge=False)
    keys = list(dict.fromkeys(key for each in overview.trials for key in each.parameters))
    for name in ("trial", "state", "attempt", "done", "WER %"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for key in keys:
        table.add_column(key, justify="right")
    table.add_column("time", justify="right")
    hidden = len(overview.trials) - _ROWS
    for each in overview.trials[-_ROWS:]:
        is_best = overview.best is not None and each.number == overview.best.number
        table.add_row(
            f"{each.number}",
            Text(each.state.lower() + (" *" if is_best else ""), style=_COLOURS.get(each.state, "")),
            f"{each.attempt}" if each.attempt else "",
            f"{100 * each.fraction:.0f} %",
            "" if each.wer is None else f"{100 * each.wer:.1f}",
            *(shown(each.parameters.get(key)) for key in keys),
            _time(each.seconds),
        )
    if hidden > 0:
        table.title = f"the newest {_ROWS} trials; {hidden} older ones are not shown"
    return table


def _failed(overview: Overview) -> Sequence[TrialGlance]:
    return [each for each in overview.trials if each.state == "FAIL"]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


class _News:
    """Prints what changed since the overview before: one line per event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: dict[int, TrialGlance] = {}
        self._preflight = ""
        self._best: int | None = None

    def show(self, overview: Overview) -> None:
        """Print the news, if there is any."""
        if overview.preflight != self._preflight:
            self._say(f"preflight {overview.preflight}")
            for each in overview.warnings:
                self._say(f"warning: {each}")
        for trial in overview.trials:
            before = self._before.get(trial.number)
            if before is None or (before.state, before.attempt, before.wer) != (trial.state, trial.attempt, trial.wer):
                self._say(_line(trial))
        if overview.best is not None and overview.best.number != self._best and overview.best.wer is not None:
            self._say(f"best so far: trial {overview.best.number} with WER {100 * overview.best.wer:.1f} %")
        self._before = {trial.number: trial for trial in overview.trials}
        self._preflight = overview.preflight
        self._best = overview.best.number if overview.best else None

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def _line(trial: TrialGlance) -> str:
    parts = [f"trial {trial.number} attempt {trial.attempt}: {trial.state.lower()}"]
    if trial.wer is not None:
        parts.append(f"WER {100 * trial.wer:.1f} %")
    if trial.state == "RUNNING":
        parts.append(f"{100 * trial.fraction:.0f} % done")
    if trial.note and (trial.state in {"FAIL", "DIVERGED"} or trial.attempt > 1):
        parts.append(trial.note)
    return ", ".join(parts)
