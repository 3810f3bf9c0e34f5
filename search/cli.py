"""The command line: each command parses, calls one function, prints. Nothing heavy is imported before it is needed."""

import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from search.errors import ConfigError, SearchError, StudyError

if TYPE_CHECKING:
    from search.study import OpenStudy

EXIT_FAILED = 1
EXIT_USAGE = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Search the hyperparameters of speech-distillation runs, on any number of GPUs.",
)

StudyName = Annotated[str, typer.Argument(help="Name of the study, as in study.name.", metavar="NAME")]
Storage = Annotated[
    Optional[str],  # noqa: UP045 typer reads it at run time
    typer.Option(
        envvar="DISTUNE_STORAGE",
        show_envvar=True,
        help="PostgreSQL URL. Without: the embedded server. Password: DISTUNE_PASSWORD_FILE, PGPASSWORD or PGPASSFILE.",
        metavar="URL",
    ),
]
Home = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder of the embedded server.", metavar="DIR"),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, max=256, help="Local worker processes; one for each GPU, or one. 0 leaves it to others."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _root(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    os.environ["DISTUNE_DEBUG"] = "1" if debug else os.environ.get("DISTUNE_DEBUG", "")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)


@app.command(epilog="Example: distune launch recipes/demo.yaml --workers 2")
def launch(
    file: Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.YAML")],
    workers: Workers = None,
    storage: Storage = None,
    home: Home = None,
    name: Annotated[Optional[str], typer.Option(help="Another name than study.name.")] = None,  # noqa: UP045
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study if it exists; for services that are restarted.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a study that searches what cannot change the student.")
    ] = False,
) -> None:
    """Create a study and run it to its budget. Ctrl-C is safe: `distune resume` goes on where it stood."""
    from search.config import with_name, with_strict
    from search.study import check_spec, create_study, create_tables, load_same_study
    from search.study_file import load_study_spec
    from storage.database import open_database

    spec = load_study_spec(file)
    if name is not None:
        spec = with_name(spec, name)
    if strict:
        spec = with_strict(spec)
    check_spec(spec)
    url = storage or spec.study.storage
    with open_database(url, home) as database:
        create_tables(database)
        study = (load_same_study(spec, database) if resume else None) or create_study(spec, database)
        _run(study, workers, url, home)


@app.command("resume", epilog="Example: distune resume demo --trials +20")
def resume_(
    name: StudyName,
    trials: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Extend the budget: +20 for twenty more.", metavar="+K"),
    ] = None,
    workers: Workers = None,
    storage: Storage = None,
    home: Home = None,
) -> None:
    """Attach to a study again, or extend it."""
    from search.study import extend_budget, load_study
    from storage.database import open_database

    extra = _extra_trials(trials)
    with open_database(storage, home) as database:
        study = load_study(name, database)
        if extra:
            study = extend_budget(study, extra)
        _run(study, workers, storage, home)


@app.command(epilog="Example: distune worker --storage postgresql://distune@db/distune")
def worker(
    study: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Serve this study and end with it. Without: every open study in turn.", metavar="NAME"),
    ] = None,
    gpu_locks: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Take a GPU that no other worker has: they agree by locks in this folder.", metavar="DIR"),
    ] = None,
    storage: Storage = None,
    home: Home = None,
) -> None:
    """Run trials, from any machine that reaches the database and the data."""
    from search.coordinator import gpu_devices
    from search.gpu_slot import hold_gpu
    from search.worker import StopRequest, WorkerOptions, run_worker, worker_name
    from storage.database import open_database

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    stop = StopRequest()
    stop.install()
    with ExitStack() as stack:
        if gpu_locks is not None:
            device = stack.enter_context(hold_gpu(gpu_locks, gpu_devices(), stop.event))
            if device is None:  # asked to stop while it waited for one
                return
            os.environ.update(CUDA_VISIBLE_DEVICES=device, CUDA_DEVICE_ORDER="PCI_BUS_ID")
        database = stack.enter_context(open_database(storage, home))
        run_worker(WorkerOptions(study=study, name=worker_name()), database, stop.event)


@app.command(epilog="Example: distune status demo --json")
def status(
    name: Annotated[Optional[str], typer.Argument(help="A study; all of them when absent.", metavar="[NAME]")] = None,  # noqa: UP045
    as_json: AsJson = False,
    storage: Storage = None,
    home: Home = None,
) -> None:
    """Show studies, trials, workers, pace and time left."""
    from rich.console import Console

    from search.overview import look_at
    from search.progress import print_overview
    from search.study import list_names, load_study
    from storage.database import open_database

    with open_database(storage, home) as database:
        overviews = []
        for each in [name] if name is not None else list_names(database):
            try:
                overviews.append(look_at(load_study(each, database)))
            except StudyError as exc:
                if name is not None:
                    raise
                typer.echo(f"distune: {exc}", err=True)  # the others are to be seen all the same
    if as_json:
        whole = [each.model_dump(mode="json") for each in overviews]
        _print_json(whole if name is None else whole[0])
        return
    for overview in overviews:
        print_overview(Console(), overview)
    if not overviews:
        typer.echo("no studies here; start one with `distune launch STUDY.YAML`")


@app.command(epilog="Example: distune best demo --json")
def best(name: StudyName, as_json: AsJson = False, storage: Storage = None, home: Home = None) -> None:
    """Show the winner, against baseline and teacher, and write best_params.json again."""
    from search.study import load_study
    from storage.database import open_database

    with open_database(storage, home) as database:
        _show_best(load_study(name, database), as_json=as_json)


database_app = typer.Typer(no_args_is_help=True, help="Prepare the database.")
app.add_typer(database_app, name="database")


@database_app.command("init", epilog="Example: distune database init --storage postgresql://distune@db/distune")
def database_init(storage: Storage = None, home: Home = None) -> None:
    """Create the tables, once, before workers start. `launch` does it too."""
    from search.study import create_tables
    from storage.database import open_database, redacted

    with open_database(storage, home) as database:
        create_tables(database)
    typer.echo(f"tables are ready in {redacted(storage) if storage else 'the embedded server'}")


@app.command(epilog="Example: distune dashboard demo --port 8080")
def dashboard(
    name: Annotated[Optional[str], typer.Argument(help="Open this study.", metavar="[NAME]")] = None,  # noqa: UP045
    host: Annotated[str, typer.Option(help="Address to listen on. It has no login: keep it on this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    storage: Storage = None,
    home: Home = None,
) -> None:
    """Serve optuna-dashboard on the studies, until Ctrl-C."""
    from search.dashboard import serve_dashboard
    from search.study import load_study
    from storage.database import open_database

    with open_database(storage, home) as database:
        study_id = load_study(name, database).study_id if name is not None else None
        serve_dashboard(database, host=host, port=port, study_id=study_id)


def _run(study: "OpenStudy", workers: int | None, storage: str | None, home: Path | None) -> None:
    """Coordinate a study, show it, and print its winner."""
    from rich.console import Console
    from rich.logging import RichHandler

    from search.coordinator import LocalOptions, coordinate, gpu_devices
    from search.preflight import reopen
    from search.progress import live_view
    from search.worker import EXIT_INTERRUPTED, StopRequest

    if study.refusal is not None:
        study = reopen(study)
    console = Console()
    # Through the console: what is written past it would tear the live table.
    handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    stop = StopRequest()
    stop.install()
    count = workers if workers is not None else max(1, len(gpu_devices()))
    with live_view(console) as show:
        overview = coordinate(study, LocalOptions(count=count, storage=storage, home=home), show, stop)
    if overview.refusal is not None:
        raise ConfigError(f"study {study.name} is refused: {overview.refusal}; then launch it again")
    if not overview.is_over:
        console.print(f"stopped; go on with: distune resume {study.name}", highlight=False)
        raise typer.Exit(EXIT_INTERRUPTED)
    _show_best(study, as_json=False)


def _show_best(study: "OpenStudy", *, as_json: bool) -> None:
    from rich.console import Console

    from search.best import find_best, update_best
    from search.progress import print_best
    from storage.runs import RunFolder

    best = update_best(study) or find_best(study)
    if as_json:
        _print_json(best.model_dump(mode="json"))
        return
    print_best(Console(), best, str(RunFolder(Path(study.spec.study.runs) / study.name).best_path))


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _extra_trials(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.startswith("+") and text[1:].isdigit() and int(text[1:]) > 0):
        raise ConfigError(f"--trials {text}: write +K to add K trials, for example --trials +20")
    return int(text[1:])


def main() -> None:
    """Run the command line. Errors of ours are one sentence on standard error; exit codes 0, 1, 2 and 130."""
    try:
        app()
    except Exception as exc:
        sentence, code = _explain(exc)
        if sentence is None or os.environ.get("DISTUNE_DEBUG"):
            raise
        typer.echo(f"distune: {sentence}", err=True)
        sys.exit(code)


def _explain(exc: Exception) -> tuple[str | None, int]:
    """Return the sentence and the exit code for an error; no sentence for one that nobody foresaw."""
    from storage.database import is_connection_error
    from storage.errors import DatabaseUrlError, StorageError

    if isinstance(exc, (ConfigError, StudyError, DatabaseUrlError)):
        return str(exc), EXIT_USAGE
    if isinstance(exc, (SearchError, StorageError, OSError)):
        return str(exc), EXIT_FAILED
    if is_connection_error(exc):
        return "the database was away for too long; when it is back, run the same command again", EXIT_FAILED
    return None, EXIT_FAILED


if __name__ == "__main__":
    main()
