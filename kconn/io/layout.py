"""Where the files of a study are: every run of a folder, with the files that belong to it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from kconn.errors import InputError, StudyFileError
from kconn.io.identifiers import canonical_label, check_distinct

#: Label of the session, or of the run, where the names of the files state none.
NO_LABEL: Final = "1"

_FIELDS: Final = ("subject", "session", "run")
_PREFIX: Final = {"subject": "sub", "session": "ses", "run": "run"}
# Entities of BIDS that tell runs of one task apart; in this order they go into the label of the run.
_RUN_ENTITIES: Final = ("acq", "ce", "dir", "rec")
_BOLD: Final = re.compile(r"(?P<entities>sub-.+)_desc-preproc_bold\.nii(?:\.gz)?")
# fMRIPrep before 1.2.
_OLD_BOLD: Final = re.compile(r"(?P<entities>sub-.+)_bold(?P<space>(?:_space-[A-Za-z0-9]+)?)_preproc\.nii(?:\.gz)?")
# Grayordinates.
_DENSE: Final = re.compile(r"(?P<entities>sub-.+)_bold\.dtseries\.nii")
_CONFOUNDS: Final = ("_desc-confounds_timeseries.tsv", "_desc-confounds_regressors.tsv", "_bold_confounds.tsv")
#: Space of an image whose name states none: the grid of the BOLD series itself, as fMRIPrep calls it.
OWN_SPACE: Final = "func"
#: Content of DataLad datasets lies behind links into this folder.
_ANNEX: Final = (".git", "annex", "objects")
_FIELD: Final = re.compile(r"\{(\w*)\}|(\*)|(\?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run and the files that belong to it; a path is None where there is no such file."""

    subject: str
    session: str
    run: str
    bold: Path | None = None
    timeseries: Path | None = None
    mask: Path | None = None
    confounds: Path | None = None
    sidecar: Path | None = None
    fd: Path | None = None
    relative_rms: Path | None = None
    task: str | None = None
    space: str | None = None

    @property
    def where(self) -> str:
        """Place of the run in messages and in the store, as ``sub-01/ses-1/run-1``."""
        return f"sub-{self.subject}/ses-{self.session}/run-{self.run}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Preproc:
    """A preprocessed image as its name describes it."""

    path: Path
    entities: dict[str, str]
    is_old: bool
    is_dense: bool


def find_runs_fmriprep(
    root: Path,
    *,
    task: str | None = None,
    space: str | None = None,
    res: str | None = None,
    den: str | None = None,
) -> list[Run]:
    """Find the preprocessed BOLD runs below a folder of fMRIPrep derivatives, of any version since 1.0.

    Series of grayordinates (``*_bold.dtseries.nii``) have the space that their name states, ``fsLR``. Where no space is
    chosen they are looked at only if there are no images.

    A file without session or run gets the label ``"1"``. A run number loses leading zeros, and ``acq``, ``ce``, ``dir``
    and ``rec`` are written before it: ``dir-AP_run-1`` is ``AP1``. Single echoes are left out.

    Parameters
    ----------
    root
        Folder of the derivatives.
    task
        Task label, needed if there are several.
    space
        Output space as in the file names, needed if there are several; ``func`` for images whose name states none.
    res
        Resolution label, needed if the space has several.
    den
        Density label, as ``91k``, needed if the space has several.

    Returns
    -------
    Runs sorted by subject, session and run.

    Raises
    ------
    InputError
        ``E-NO-RUNS`` saying what was found; ``E-AMBIGUOUS`` if tasks, spaces or resolutions are several and none was
        chosen; ``E-ID``; ``E-ID-DUPLICATE`` if two files claim one run; ``E-FILE-MISSING`` if the folder does not
        exist or a file lies outside it.
    """
    root = check_root(root)
    images = _find_preproc(root)
    if not images:
        raise no_runs(
            f"no *_desc-preproc_bold.nii.gz or *_bold.dtseries.nii was found; the folder holds {_endings(root)}"
        )
    if space is None:
        images = [image for image in images if not image.is_dense] or images
    for key, chosen, default in (("task", task, None), ("space", space, OWN_SPACE), ("res", res, ""), ("den", den, "")):
        images = _choose(images, key, chosen, default=default)
    runs = [_to_run(image, root) for image in images]
    check_runs(runs)
    return sorted(runs, key=lambda run: (run.subject, run.session, run.run))


def list_choices(root: Path, *, task: str | None = None, space: str | None = None) -> dict[str, list[str]]:
    """Return what `find_runs_fmriprep` may have to choose from in a folder, before anything is chosen.

    Parameters
    ----------
    root
        Folder of the derivatives.
    task, space
        List what is there for this task and space alone.

    Returns
    -------
    ``task``, ``space``, ``res`` and ``den`` -> sorted labels; ``func`` stands for the space of images whose name states
    none.

    Raises
    ------
    InputError
        ``E-FILE-MISSING`` if the folder does not exist.
    """
    images = _find_preproc(check_root(root))
    for key, chosen, default in (("task", task, None), ("space", space, OWN_SPACE)):
        images = [image for image in images if chosen in (None, image.entities.get(key, default))]
    return {
        key: sorted({label for image in images if (label := image.entities.get(key, default))})
        for key, default in (("task", ""), ("space", OWN_SPACE), ("res", ""), ("den", ""))
    }


def find_runs_images(
    root: Path,
    *,
    pattern: str,
    mask_pattern: str | None = None,
    fd_pattern: str | None = None,
    confounds_pattern: str | None = None,
) -> list[Run]:
    """Find preprocessed BOLD runs of any pipeline: 4-D NIfTI files whose paths follow a pattern.

    A JSON file of the same name beside an image is its sidecar.

    Parameters
    ----------
    root
        Folder that the patterns start from.
    pattern
        Path of an image; see `find_runs_tables`.
    mask_pattern
        Path below ``root`` of the brain mask; it may do without ``{subject}`` where one mask serves all.
    fd_pattern, confounds_pattern
        See `find_runs_tables`.

    Returns
    -------
    Runs sorted by subject, session and run.

    Raises
    ------
    InputError
        See `find_runs_tables`.
    StudyFileError
        See `find_runs_tables`.
    """
    companions = _companions(fd_pattern, confounds_pattern)
    if mask_pattern is not None:
        _check_pattern(mask_pattern, needs_subject=False)
        companions["mask"] = (mask_pattern, "brain mask")
    runs = _find_by_pattern(root, pattern, "bold", companions)
    return [replace(run, sidecar=_sidecar(run.bold, root.resolve())) for run in runs if run.bold]


def find_runs_cifti(
    root: Path, *, pattern: str, fd_pattern: str | None = None, confounds_pattern: str | None = None
) -> list[Run]:
    """Find dtseries or ptseries of any pipeline whose paths follow a pattern, as `find_runs_images` finds images."""
    return find_runs_images(root, pattern=pattern, fd_pattern=fd_pattern, confounds_pattern=confounds_pattern)


def find_runs_tables(
    root: Path, *, pattern: str, fd_pattern: str | None = None, confounds_pattern: str | None = None
) -> list[Run]:
    """Find node series in text files whose paths follow a pattern.

    Parameters
    ----------
    root
        Folder that the patterns start from.
    pattern
        Path below ``root`` with ``{subject}`` and, where there are several, ``{session}`` and ``{run}``; ``*`` and
        ``?`` stand for any characters but a slash. A field that occurs twice must have the same label twice.
        A session or run that the pattern does not state is ``"1"``.
    fd_pattern, confounds_pattern
        Paths below ``root`` of framewise displacement and confounds, with the same fields.

    Returns
    -------
    Runs sorted by subject, session and run.

    Raises
    ------
    InputError
        ``E-NO-RUNS``; ``E-ID`` if a file fits the pattern but for a malformed label, or repeats a field with another
        label; ``E-ID-DUPLICATE`` if two files claim one run; ``E-FILE-MISSING`` if the folder, or a file that
        ``fd_pattern`` or ``confounds_pattern`` describes, does not exist or lies outside the folder; ``E-AMBIGUOUS``
        if several fit.
    StudyFileError
        ``E-STUDY-VALUE`` for a pattern without ``{subject}``, with unknown fields, or leading out of ``root``.
    """
    return _find_by_pattern(root, pattern, "timeseries", _companions(fd_pattern, confounds_pattern))


def find_companion(root: Path, pattern: str, run: Run, *, what: str) -> Path:
    """Return the one file that a pattern describes for a run of any layout.

    Labels are compared as labels: with or without ``sub-``, and numbers of runs with or without leading zeros.

    Parameters
    ----------
    root
        Folder that the pattern starts from.
    pattern
        See `find_runs_tables`; it may do without ``{subject}`` where one file serves all.
    run
        The run.
    what
        Kind of file, for errors.

    Raises
    ------
    InputError
        ``E-FILE-MISSING`` or ``E-AMBIGUOUS``.
    StudyFileError
        ``E-STUDY-VALUE`` for a pattern that cannot be.
    """
    root = check_root(root)
    _check_pattern(pattern, needs_subject=False)
    strict, wanted = _compile_strict(pattern), {"subject": run.subject, "session": run.session, "run": run.run}
    narrowed = _FIELD.sub(lambda match: f"*{wanted[match[1]].lstrip('0')}*" if match[1] else match[0], pattern)
    paths = [
        path
        for path in _find_files(root, _to_glob(narrowed))
        if (match := strict.fullmatch(path.relative_to(root).as_posix())) is not None
        and all(_is_label(text, key, wanted[key]) for key, text in match.groupdict().items())
    ]
    if len(paths) == 1:
        return inside(paths[0], root)
    raise _not_one(paths, name_by_pattern(pattern, run), what=what, where=run.where)


def find_beside(path: Path, root: Path, endings: Mapping[str, str]) -> Path | None:
    """Return the file beside another whose name ends otherwise, or None.

    Parameters
    ----------
    path
        The file.
    root
        Folder of the inputs.
    endings
        Ending of its name -> ending of the other's name; the first that fits counts.
    """
    stems = ((path.name.removesuffix(ending), other) for ending, other in endings.items() if path.name.endswith(ending))
    return beside(path, root.resolve(), (stem + other for stem, other in stems))


def _is_label(text: str, key: str, wanted: str) -> bool:
    label = text.removeprefix(f"{_PREFIX[key]}-")
    return label == wanted or (key == "run" and label.isdigit() and wanted.isdigit() and int(label) == int(wanted))


def name_by_pattern(pattern: str, run: Run) -> str:
    """Return a pattern with the labels of a run in place of its fields: it names a file without its wildcards."""
    labels = {"subject": run.subject, "session": run.session, "run": run.run}
    return _FIELD.sub(lambda match: match[0] if match[1] is None else labels[match[1]], pattern)


def _companions(fd_pattern: str | None, confounds_pattern: str | None) -> dict[str, tuple[str, str]]:
    """Return role -> pattern and what it is in words; each run has its own."""
    given = {"fd": (fd_pattern, "framewise displacement"), "confounds": (confounds_pattern, "confound table")}
    companions = {role: (pattern, what) for role, (pattern, what) in given.items() if pattern is not None}
    for pattern, _ in companions.values():
        _check_pattern(pattern)
    return companions


def _find_by_pattern(
    root: Path, pattern: str, role: Literal["bold", "timeseries"], companions: Mapping[str, tuple[str, str]]
) -> list[Run]:
    """Return the runs whose file of the given role fits the pattern, each with its companions."""
    root = check_root(root)
    _check_pattern(pattern)
    strict, loose = _compile_strict(pattern), _compile_loose(pattern)
    runs = []
    for path in _find_files(root, _to_glob(pattern)):
        name = path.relative_to(root).as_posix()
        match = strict.fullmatch(name)
        if match is None:
            _refuse_near_miss(loose.fullmatch(name), pattern)
            continue
        labels = {key: canonical_label(text, prefix=_PREFIX[key]) for key, text in match.groupdict().items()}
        run = Run(
            subject=labels["subject"],
            session=labels.get("session", NO_LABEL),
            run=labels.get("run", NO_LABEL),
        )
        found = {
            part: _find_one(root, other, labels=match.groupdict(), what=what, where=run.where)
            for part, (other, what) in companions.items()
        }
        here = inside(path, root)
        runs.append(
            replace(
                run,
                bold=here if role == "bold" else None,
                timeseries=here if role == "timeseries" else None,
                mask=found.get("mask"),
                confounds=found.get("confounds"),
                fd=found.get("fd"),
            )
        )
    if not runs:
        raise no_runs(f"no file fits the pattern {pattern!r}; the folder holds {_endings(root)}")
    check_runs(runs)
    return sorted(runs, key=lambda run: (run.subject, run.session, run.run))


def check_root(root: Path) -> Path:
    """Return the folder of the inputs, resolved.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``.
    """
    if not root.is_dir():
        raise InputError(
            "E-FILE-MISSING",
            "the folder of the inputs does not exist, or is no folder",
            rule="inputs.root is a folder",
            fix="correct inputs.root in the study file",
        )
    return root.resolve()


def _find_images(root: Path) -> Iterator[Path]:
    """Yield the images of subjects, sorted, wherever below ``sub-*`` (or beside it) they lie."""
    for path in sorted(root.glob("sub-*")):
        yield from sorted(path.rglob("sub-*.nii*")) if path.is_dir() else (path,)


def _find_preproc(root: Path) -> list[_Preproc]:
    """Return the preprocessed images below a folder, single echoes left out."""
    images = (_parse_bold(path) for path in _find_images(root))
    return [image for image in images if image is not None and "echo" not in image.entities]


def _find_files(root: Path, glob: str) -> list[Path]:
    # A broken link counts as a file: reading it tells how to fetch its content.
    return [path for path in sorted(root.glob(glob)) if path.is_file() or path.is_symlink()]


def inside(path: Path, root: Path) -> Path:
    """Return ``path`` if it leads to a place below ``root`` or into a DataLad annex."""
    target = path.resolve()
    parts = target.parts
    in_annex = any(parts[i : i + 3] == _ANNEX for i in range(len(parts) - 2))
    if not target.is_relative_to(root) and not in_annex:
        raise InputError(
            "E-FILE-MISSING",
            f"{path.relative_to(root).as_posix()!r} is a link out of the folder of the inputs",
            rule="every input lies below inputs.root (or in the annex of its DataLad dataset)",
            fix="copy the file there, or choose a root that holds both",
        )
    return path


def _parse_bold(path: Path) -> _Preproc | None:
    is_dense = (dense := _DENSE.fullmatch(path.name)) is not None
    match = _BOLD.fullmatch(path.name) or _OLD_BOLD.fullmatch(path.name) or dense
    if match is None:
        return None
    pairs = (match["entities"] + match.groupdict().get("space", "")).split("_")
    entities = dict(pair.partition("-")[::2] for pair in pairs)
    return _Preproc(path=path, entities=entities, is_old="space" in match.groupdict(), is_dense=is_dense)


def _choose(images: list[_Preproc], key: str, chosen: str | None, *, default: str | None) -> list[_Preproc]:
    found = Counter(image.entities.get(key, default or "") for image in images)
    if chosen is None and len(found) > 1:
        raise InputError(
            "E-AMBIGUOUS",
            f"there are {len(found)} labels of '{key}': {listed(found)}",
            rule="runs of one study have one task, space and resolution",
            fix=f"state inputs.{key} in the study file",
        )
    kept = [image for image in images if chosen is None or image.entities.get(key, default or "") == chosen]
    if kept:
        return kept
    raise no_runs(f"no preprocessed BOLD image has {key}-{chosen}; there are {listed(found)}")


def listed(found: Counter[str]) -> str:
    """Return labels with how many files have each, in words."""
    return ", ".join(f"{label or 'none'} ({n} files)" for label, n in sorted(found.items()))


def no_runs(problem: str) -> InputError:
    """Return the error that says what was found instead of runs."""
    return InputError(
        "E-NO-RUNS",
        problem,
        rule="at least one run fits layout, task, space and pattern",
        fix="correct [inputs] in the study file",
    )


def _endings(root: Path) -> str:
    """Return which kinds of files a folder holds, most frequent first; endings only, names may identify a person."""
    kinds = Counter("".join(path.suffixes[-2:]) or "without ending" for path in root.rglob("*") if path.is_file())
    return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(5)) or "no file"


def _to_run(image: _Preproc, root: Path) -> Run:
    entities, name = image.entities, image.path.name
    bold = inside(image.path, root)
    number = entities.get("run")
    extra = "".join(canonical_label(entities[key], prefix=key) for key in _RUN_ENTITIES if key in entities)
    if number is not None:
        number = canonical_label(number, prefix="run")
        number = str(int(number)) if number.isdigit() else number
    stem = _stem(entities)
    mask = (
        name.replace("_preproc.", "_brainmask.")
        if image.is_old
        else name.replace("_desc-preproc_bold", "_desc-brain_mask")
    )
    return Run(
        subject=canonical_label(entities["sub"], prefix="sub"),
        session=canonical_label(entities.get("ses", NO_LABEL), prefix="ses"),
        run=(extra + (number or "")) or NO_LABEL,
        bold=bold,
        mask=None if image.is_dense else beside(image.path, root, [mask]),
        confounds=beside(image.path, root, [stem + suffix for suffix in _CONFOUNDS]),
        sidecar=_sidecar(image.path, root),
        task=entities.get("task"),
        space=entities.get("space", OWN_SPACE),
    )


def _stem(entities: dict[str, str]) -> str:
    """Return the name that all files of a run share: its entities without those of one image."""
    return "_".join(f"{key}-{label}" for key, label in entities.items() if key not in {"space", "res", "den", "desc"})


def _sidecar(path: Path, root: Path) -> Path | None:
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    # A sidecar of grayordinates is named with or without the kind of series.
    short = stem.removesuffix(".dtseries").removesuffix(".ptseries")
    return beside(path, root, [f"{stem}.json", f"{short}.json"])


def beside(path: Path, root: Path, names: Iterable[str]) -> Path | None:
    """Return the first of several files that is there in the folder of another, or None."""
    return next((inside(other, root) for name in names if (other := path.with_name(name)).exists()), None)


def check_runs(runs: list[Run]) -> None:
    """Refuse two files that claim one run, and labels that differ only in case.

    Raises
    ------
    InputError
        ``E-ID-DUPLICATE``.
    """
    check_distinct(((f"file {i + 1}", run.where) for i, run in enumerate(runs)), what="files")
    subjects = sorted({run.subject for run in runs})
    check_distinct(((label, label) for label in subjects), what="spellings")
    sessions = sorted({(run.subject, run.session) for run in runs})
    check_distinct(((pair, f"sub-{pair[0]}/ses-{pair[1]}") for pair in sessions), what="spellings")


def _check_pattern(pattern: str, *, needs_subject: bool = True) -> None:
    fields = {match[1] for match in _FIELD.finditer(pattern)} - {None}
    is_outside = pattern.startswith("/") or ".." in PurePosixPath(pattern).parts or bool({"\\", "\0"} & set(pattern))
    lacks_subject = needs_subject and "subject" not in fields
    if is_outside or lacks_subject or fields - set(_FIELDS) or "**" in pattern:
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"the pattern is {pattern!r}",
            rule="a path below inputs.root with {subject}, optionally {session} and {run}, and * or ? as wildcards",
            fix="correct the pattern in the study file, as in 'sub-{subject}/ses-{session}_series.tsv'",
        )


def _compile_strict(pattern: str) -> re.Pattern[str]:
    """Return the pattern with one group per field, and back references where a field repeats."""
    seen: set[str] = set()

    def group(field: str) -> str:
        if field in seen:
            return f"(?P={field})"
        seen.add(field)
        return f"(?P<{field}>(?:{_PREFIX[field]}-)?[A-Za-z0-9]+)"

    return _compile(pattern, group)


def _compile_loose(pattern: str) -> re.Pattern[str]:
    """Return the pattern with a group of any text for every field, named ``field_0``, ``field_1``, ..."""
    counts: Counter[str] = Counter()

    def group(field: str) -> str:
        counts[field] += 1
        return f"(?P<{field}_{counts[field]}>[^/]+?)"

    return _compile(pattern, group)


def _compile(pattern: str, group: Callable[[str], str]) -> re.Pattern[str]:
    expression, end = "", 0
    for match in _FIELD.finditer(pattern):
        wildcard = "[^/]*" if match[2] else "[^/]"
        expression += re.escape(pattern[end : match.start()]) + (wildcard if match[1] is None else group(match[1]))
        end = match.end()
    return re.compile(expression + re.escape(pattern[end:]))


def _to_glob(pattern: str) -> str:
    return re.sub(r"\*+", "*", re.sub(r"\{\w+\}", "*", pattern.replace("[", "[[]")))


def _refuse_near_miss(match: re.Match[str] | None, pattern: str) -> None:
    """Refuse a file that would fit the pattern but for its labels: left out in silence it would be missed by nobody."""
    if match is None:
        return
    where = f"pattern {pattern!r}"
    labels: dict[str, str] = {}
    for key, text in match.groupdict().items():
        field = key.partition("_")[0]
        label = canonical_label(text, prefix=_PREFIX[field], where=where)
        if labels.setdefault(field, label) != label:
            raise InputError(
                "E-ID",
                f"one path states two labels of {field}: {labels[field]!r} and {label!r}",
                where=where,
                rule="a field that occurs twice in the pattern has the same label twice",
                fix="rename the file, or move it out of the folder",
            )


def _find_one(root: Path, pattern: str, *, labels: dict[str, str], what: str, where: str) -> Path:
    filled = _FIELD.sub(lambda match: match[0] if match[1] is None else labels.get(match[1], "*"), pattern)
    paths = _find_files(root, _to_glob(filled))
    if len(paths) == 1:
        return inside(paths[0], root)
    raise _not_one(paths, filled, what=what, where=where)


def _not_one(paths: list[Path], filled: str, *, what: str, where: str) -> InputError:
    return InputError(
        "E-AMBIGUOUS" if paths else "E-FILE-MISSING",
        f"{len(paths)} files fit {filled!r} for the {what} of this run",
        where=where,
        rule="exactly one file per run",
        fix="correct the pattern in the study file, or add the file",
    )
