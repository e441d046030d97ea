"""The shell: ``kconn simulate | init | check | plan | run | status | verify | report | export | ...``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from kconn.errors import KconnError, unforeseen
from kconn.interrupts import heeded_interrupts, raise_unheard

# Everything heavy is imported by the command that needs it: `kconn --help` answers at once.

EXIT_DONE: Final = 0
EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    0 done, 1 a `KconnError` (its code is printed), 2 wrong usage, 130 interrupted and resumable.
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return guarded(lambda: command(arguments), study=getattr(arguments, "study", None))


def guarded(call: Callable[[], int], *, study: str | None) -> int:
    """Return the exit code of a command, with every error in words: no raw traceback goes past this border.

    Parameters
    ----------
    call
        Does the work and returns an exit code.
    study
        The study file; the traceback of an unforeseen error is kept beside it.
    """
    try:
        with heeded_interrupts():
            code = call()
        sys.stdout.flush()
    except KconnError as error:
        _print_error(error)
        _keep_details(error, study)
        return EXIT_ERROR
    except KeyboardInterrupt:
        # Of coroutines that were cut off before they began.
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
        sys.stderr.write("interrupted: what was finished is kept; run the same command again to go on\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of the output has seen enough; nothing is left to say at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Exception as error:  # noqa: BLE001 - the border
        found = unforeseen(error)
        _print_error(found)
        _keep_details(found, study)
        return EXIT_ERROR
    return code


def simulate(arguments: argparse.Namespace) -> int:
    """Write a simulated trial and its study file."""
    from kconn.study.scaffold import write_simulated_study

    path = write_simulated_study(
        Path(arguments.folder), n_subjects_per_group=arguments.subjects, layout=arguments.layout, seed=arguments.seed
    )
    _say(f"wrote {path}\nnext: kconn run {path}")
    return EXIT_DONE


def init(arguments: argparse.Namespace) -> int:
    """Look at a folder and write a commented study file."""
    from kconn.study.scaffold import Pattern, write_study_file

    pattern = None
    if arguments.pattern is not None:
        pattern = Pattern(
            pattern=arguments.pattern,
            mask_pattern=arguments.mask_pattern,
            confounds_pattern=arguments.confounds_pattern,
            orientation=arguments.orientation,
            t_r=arguments.t_r,
        )
    summary = write_study_file(Path(arguments.derivatives), Path(arguments.out), atlas=arguments.atlas, pattern=pattern)
    _say(summary)
    return EXIT_DONE


def check(arguments: argparse.Namespace) -> int:
    """Validate everything that can be validated without computing, and list all that is wrong."""
    from kconn.study.file import Study, parse_study
    from kconn.study.survey import survey_study

    study = parse_study(arguments.study)
    if not isinstance(study, Study):
        for finding in study:
            _print_error(finding)
        _say(f"{len(study)} problem(s) in the file itself; the inputs were not looked at")
        return EXIT_ERROR
    survey = survey_study(study)
    for problem in survey.problems:
        _print_error(problem)
    subjects = {run.run.subject for run in survey.runs}
    _say(
        f"{len(survey.runs)} runs of {len(subjects)} subjects, {len(study.nodes)} node set(s), "
        f"{len(study.contrasts)} contrast(s)"
    )
    for subject, reason in sorted(survey.left_out.items()):
        _say(f"left out sub-{subject}: {reason}")
    for run in survey.runs:
        if run.left_out is not None:
            _say(f"will be left out {run.where}: {run.left_out.code} {run.left_out.problem}")
    _say(f"{len(survey.problems)} problem(s)" if survey.problems else "ready to run")
    return EXIT_ERROR if survey.problems else EXIT_DONE


def plan(arguments: argparse.Namespace) -> int:
    """Print the steps with what they will cost."""
    from kconn.cluster import cores
    from kconn.study.workbench import prepare
    from kconn.summary import plan_as_json, plan_as_table

    bench = prepare(arguments.study)
    if arguments.json:
        sys.stdout.write(json.dumps(plan_as_json(bench), indent=1) + "\n")
    else:
        _console().print(plan_as_table(bench, n_workers=arguments.workers or cores()))
    return EXIT_DONE


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing of a study and write its report."""
    from kconn.cluster.lost_workers import telling_of_lost_workers
    from kconn.cluster.stalled import watched_for_stalls
    from kconn.execution import each, run_plan
    from kconn.progress import show_progress
    from kconn.run_log import keep_log
    from kconn.study.workbench import connected, prepare, refuse_what_does_not_fit, reported, writing

    bench = prepare(arguments.study, rehash=arguments.rehash)
    console = _console()
    with writing(bench):
        if bench.pending():
            with (
                keep_log(bench.study.work, command="run") as log,
                connected(
                    bench.study,
                    n_workers=arguments.workers,
                    address=arguments.scheduler,
                    n_runs=len(bench.survey.runs),
                    kind=arguments.cluster,
                    tls=arguments.tls,
                ) as client,
                reported(client, arguments.performance_report),
                watched_for_stalls(client),
            ):
                console.print(f"run {log.run_id}, log: {log.name}", highlight=False)
                refuse_what_does_not_fit(bench, client)
                if client is not None:
                    console.print(f"dashboard: {client.dashboard_link}", highlight=False)
                with (
                    show_progress(console, bench.plan.steps, bench.study.store) as listen,
                    telling_of_lost_workers(client, lambda lost: console.print(str(lost), highlight=False)),
                ):
                    heard = each(listen, log.listen, raise_unheard)
                    run_plan(bench.plan, bench.bind, client=client, listen=heard)
        else:
            console.print(f"nothing to do: all {len(bench.plan.steps)} results are there")
        _write_report(bench)
    _say(f"report: {bench.study.report}")
    return EXIT_DONE


def status(arguments: argparse.Namespace) -> int:
    """Print how far a study and its tests are, and which runs were left out."""
    from kconn.study.workbench import prepare
    from kconn.summary import status_as_json, status_as_table, watch_status

    bench = prepare(arguments.study)
    if arguments.watch:
        watch_status(bench, _console())
    elif arguments.json:
        sys.stdout.write(json.dumps(status_as_json(bench), indent=1) + "\n")
    else:
        _console().print(status_as_table(bench))
    return EXIT_DONE


def verify(arguments: argparse.Namespace) -> int:
    """Read every published byte and compare it with its seal."""
    from kconn.io import store
    from kconn.io.storage import find_place, is_remote
    from kconn.study.file import read_study

    named = arguments.study
    root = find_place(named) if is_remote(named) or Path(named).is_dir() else read_study(named).store
    addresses, findings = store.verify(root)
    for finding in findings:
        _say(f"E-STORE-CORRUPT [{finding.place}] {finding.problem}")
    _say(
        f"{len(addresses)} published groups, {len(findings)} damaged; sha256 of all: {store.digest_store(root)}"
        if not findings
        else f"{len(addresses)} published groups, {len(findings)} damaged; run the study again to make these anew"
    )
    return EXIT_ERROR if findings else EXIT_DONE


def report(arguments: argparse.Namespace) -> int:
    """Write the report again from what is published."""
    from kconn.study.workbench import prepare

    bench = prepare(arguments.study)
    _write_report(bench)
    _say(f"report: {bench.study.report}")
    return EXIT_DONE


def export(arguments: argparse.Namespace) -> int:
    """Write series, netmats and statistics as BIDS-derivative files."""
    from kconn.export.study import export_study
    from kconn.study.workbench import prepare

    bench = prepare(arguments.study)
    n_files = export_study(bench, Path(arguments.out), images=arguments.images)
    _say(f"wrote {n_files} files to {arguments.out}")
    return EXIT_DONE


def design(arguments: argparse.Namespace) -> int:
    """Write the design of a contrast as files for FSL randomise or PALM, with the ids of its rows."""
    from kconn.export.designs import write_design
    from kconn.study.workbench import prepare

    written = write_design(prepare(arguments.study), arguments.contrast, Path(arguments.out), form=arguments.format)
    of = "the observations of the results" if written.from_results else "every run as if it were usable"
    _say(f"wrote {len(written.files)} files to {arguments.out}, for {of}\n{written.command}")
    return EXIT_DONE


def clean(arguments: argparse.Namespace) -> int:
    """Remove results that newer ones have replaced, and leftovers of killed runs."""
    from kconn.io import store
    from kconn.study.file import read_study

    root = read_study(arguments.study).store
    store.check_store(root)
    with store.locked(root):
        _say(f"removed {store.remove_superseded(root)} superseded groups")
    return EXIT_DONE


def tls_init(arguments: argparse.Namespace) -> int:
    """Make a private authority, and a certificate for each role."""
    from kconn.cluster.tls import make_certificates

    folder = Path(arguments.folder)
    expiry = make_certificates(folder, days=arguments.days)
    _say(
        f"wrote certificates of scheduler, worker and client to {folder}; they expire {expiry:%Y-%m-%d %H:%M} UTC\n"
        f"keep {folder / 'ca-key.pem'} elsewhere: nothing that runs needs it"
    )
    return EXIT_DONE


def _write_report(bench: Any) -> None:
    from kconn.report.study import write_study_report

    write_study_report(bench)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kconn",
        description="From preprocessed resting-state runs to corrected p-values and a report.",
        epilog="One file describes a study: kconn init DERIVATIVES --out study.toml, then kconn run study.toml.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], *, takes_study: bool = True
    ) -> argparse.ArgumentParser:
        summary = (command.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command)
        if takes_study:
            sub.add_argument("study", help="the study file")
        return sub

    made = add("simulate", simulate, takes_study=False)
    made.add_argument("folder", help="new folder for the study")
    made.add_argument("--subjects", type=int, default=16, help="per group (default 16)")
    made.add_argument("--layout", choices=["fmriprep", "hcp", "tables"], default="fmriprep")
    made.add_argument("--seed", type=int, default=0)
    begun = add("init", init, takes_study=False)
    begun.add_argument(
        "derivatives", help="folder of fMRIPrep or HCP outputs, of other images, of CIFTI series, or of tables"
    )
    begun.add_argument("--out", default="study.toml", help="file to write (default study.toml); never overwritten")
    begun.add_argument("--atlas", help="label image or dlabel for the node set")
    begun.add_argument("--pattern", help="path of a run without BIDS names, such as '{subject}/{session}/rest.nii.gz'")
    begun.add_argument("--mask-pattern", help="images: path of the brain mask of a run, or of one for all")
    begun.add_argument("--confounds-pattern", help="path of the confound table of a run")
    begun.add_argument("--orientation", choices=["time-by-node", "node-by-time"], help="tables: what a row is")
    begun.add_argument("--t-r", type=float, help="repetition time in s, where the files do not state it")
    add("check", check)
    _add_plan_options(add("plan", plan))
    _take_run_options(add("run", run))
    shown = add("status", status).add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="for other programs")
    shown.add_argument("--watch", action="store_true", help="go on showing it until everything is there")
    add("verify", verify)
    add("report", report)
    exported = add("export", export)
    exported.add_argument("--out", required=True, help="folder to write")
    exported.add_argument("--images", action="store_true", help="also the denoised series and tSNR maps: large")
    written = add("design", design)
    written.add_argument("contrast", help="name of the contrast")
    written.add_argument("--out", required=True, help="folder to write")
    written.add_argument("--format", choices=["fsl", "palm"], default="fsl", help="whose files (default fsl)")
    add("clean", clean)
    _add_tls(commands)
    return parser


def _take_run_options(ran: argparse.ArgumentParser) -> None:
    where = ran.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="worker processes (default: one per core; 0: in this process)")
    where.add_argument("--scheduler", help="address of a running Dask scheduler")
    ran.add_argument("--cluster", choices=["local", "address", "slurm", "kubernetes"], help="instead of [cluster] kind")
    ran.add_argument("--tls", metavar="FOLDER", help="certificates of `kconn tls init`, instead of [cluster] tls")
    ran.add_argument(
        "--rehash", action="store_true", help="read every input again instead of trusting its time of change"
    )
    ran.add_argument("--performance-report", metavar="FILE", help="Dask's own report of the run, as one HTML page")


def _add_tls(commands: Any) -> None:
    summary = "Make a private authority and certificates for schedulers, workers and clients."
    actions = commands.add_parser("tls", help=summary, description=summary).add_subparsers(
        required=True, metavar="ACTION"
    )
    made = actions.add_parser("init", help=(tls_init.__doc__ or "").splitlines()[0])
    made.set_defaults(command=tls_init)
    made.add_argument("folder", help="new or empty folder")
    made.add_argument("--days", type=float, default=365.0, help="how long the certificates hold (default 365)")


def _add_plan_options(planned: argparse.ArgumentParser) -> None:
    planned.add_argument("--json", action="store_true", help="every step, for other programs")
    planned.add_argument("--workers", type=int, help="workers to tell the hours for (default: one per core)")


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_error(error: KconnError) -> None:
    place = f" [{error.where}]" if error.where else ""
    lines = [f"{error.code}{place} {error.problem}"]
    lines += [f"  rule: {error.rule}"] if error.rule else []
    lines += [f"  fix:  {error.fix}"] if error.fix else []
    sys.stderr.write("\n".join(lines) + "\n")


def _keep_details(error: KconnError, study: str | None) -> None:
    """Write the traceback of an unforeseen error beside the study file."""
    if not error.details or study is None:
        return
    log = Path(study).with_suffix(".log")
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{error}\n{error.details}\n")
    except OSError as refused:
        sys.stderr.write(f"  log:  {log.name} cannot be written: {refused.strerror}\n")
        return
    sys.stderr.write(f"  log:  {log}\n")


if __name__ == "__main__":
    sys.exit(main())
