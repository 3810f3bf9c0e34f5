"""What a person sees of a study: the table, the lines of news, the winner."""

import io

from rich.console import Console

from search.overview import Overview, TrialGlance
from search.progress import draw, live_view, print_best
from storage.results import Baseline, BestParams, Teacher, WordErrorRate


def glance(number: int, state: str, wer: float | None = None, **fields: object) -> TrialGlance:
    content = {
        "number": number,
        "state": state,
        "attempt": 1,
        "worker": "host-1-ab" if state == "RUNNING" else None,
        "fraction": 0.5,
        "wer": wer,
        "parameters": {"lr": 0.00026, "batch_size": 8},
        "seconds": 75.0,
        "note": None,
        "log_tail": None,
        **fields,
    }
    return TrialGlance.model_validate(content)


def overview(*trials: TrialGlance, best: TrialGlance | None = None, **fields: object) -> Overview:
    content = {
        "name": "demo",
        "budget": 12,
        "finished": sum(each.state not in {"RUNNING", "WAITING"} for each in trials),
        "states": {each.state: 1 for each in trials},
        "best": best,
        "trials": trials,
        "workers": (),
        "preflight": "done",
        "refusal": None,
        "warnings": (),
        "dead_knobs": (),
        "trials_per_hour": 240.0,
        "seconds_left": 150.0,
        **fields,
    }
    return Overview.model_validate(content)


def rendered(renderable: object, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_trials_the_best_and_the_time_left() -> None:
    best = glance(1, "COMPLETE", 0.214)
    text = rendered(draw(overview(glance(0, "COMPLETE", 0.5), best, glance(2, "RUNNING", 1.6, attempt=2), best=best)))
    assert "study demo: 2 of 12 trials finished" in text
    assert "best: trial 1 with WER 21.4 %" in text
    assert "240 trials an hour, about 2 min 30 s left" in text
    assert "complete *" in text
    assert "160.0" in text  # above 100 % is possible early on
    assert "1 min 15 s" in text


def test_a_failed_trial_says_why() -> None:
    text = rendered(draw(overview(glance(0, "FAIL", note="no new checkpoint in 3 attempts: killed by signal 9"))))
    assert "trial 0: no new checkpoint in 3 attempts: killed by signal 9" in text


def test_a_long_study_shows_its_newest_trials_and_says_so() -> None:
    text = rendered(draw(overview(*(glance(number, "COMPLETE", 0.5) for number in range(50)))))
    assert "the newest 20 trials; 30 older ones are not shown" in text


def test_without_a_terminal_every_event_is_one_line_and_comes_once() -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    running, ended = glance(0, "RUNNING", 0.9), glance(0, "COMPLETE", 0.4)
    with live_view(console) as show:
        for view in (overview(running), overview(running), overview(ended, best=ended)):
            show(view)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "preflight done",
        "trial 0 attempt 1: running, WER 90.0 %, 50 % done",
        "trial 0 attempt 1: complete, WER 40.0 %",
        "best so far: trial 0 with WER 40.0 %",
    ]


def test_the_winner_is_shown_against_baseline_and_teacher() -> None:
    def rate(wer: float) -> WordErrorRate:
        return WordErrorRate(wer=wer, words=700, utterances=192, interval=(wer - 0.02, wer + 0.02))

    best = BestParams(
        study="demo",
        trial=7,
        attempt=1,
        value=0.2,
        dev=rate(0.2),
        test=rate(0.22),
        parameters={"lr": 0.002, "batch_size": 8},
        trial_spec={},
        study_seed=0,
        trial_seed=0,
        proposed_from={"finished": [], "running": []},
        baseline=Baseline(trial=0, parameters={"lr": 0.00026, "batch_size": 4}, dev=rate(0.6), test=rate(0.65)),
        teacher=Teacher(dev=rate(0.05), test=None),
        trials_finished=12,
        budget=12,
        packages={},
        code_version="0",
        written_at="2026-11-21T00:00:00+00:00",
    )
    console = Console(file=io.StringIO(), width=140)
    print_best(console, best, "/runs/demo/best_params.json")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "20.0 [18.0, 22.0]" in text and "60.0 [58.0, 62.0]" in text and "5.0 [3.0, 7.0]" in text
    assert "700 words" in text
    assert "/runs/demo/best_params.json" in text
