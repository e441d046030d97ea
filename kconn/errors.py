"""The errors that kconn raises: each has a stable code, the place, the value, the rule it breaks and a way out."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

#: Every code, with what it means. A code never changes its meaning; `docs/errors.md` is printed from this table.
CODES: Final[dict[str, str]] = {
    # study file
    "E-STUDY-READ": "The study file cannot be read or is not TOML.",
    "E-STUDY-KEY": "The study file holds a key that kconn does not know.",
    "E-STUDY-VALUE": "A value in the study file is missing, of the wrong type or outside its range.",
    # layout and identifiers
    "E-NO-RUNS": "No run was found for the given layout, task, space and pattern.",
    "E-AMBIGUOUS": "Several tasks, spaces or files fit, and none was chosen.",
    "E-ID": "A subject, session or run label holds characters that are not allowed.",
    "E-ID-DUPLICATE": "Two runs or two table rows claim the same identifier (also when they differ only in case).",
    "E-ID-MISSING": "An identifier of the data is absent from a table that must describe it.",
    "E-ID-EXTRA": "A table or design names an identifier for which there is no data.",
    "E-FILE-MISSING": "A file that the study needs does not exist or cannot be read.",
    "E-FILE-EXISTS": "A folder that is to be written already holds something else.",
    # images
    "E-NIFTI": "The file is not a readable NIfTI image.",
    "E-NIFTI-SIZE": "The header claims another number of bytes than the file holds.",
    "E-NIFTI-DIMS": "The image does not have the dimensions that are needed.",
    "E-NIFTI-DTYPE": "The image stores a data type that is no BOLD signal (complex, RGB, ...).",
    "E-NIFTI-SCALE": "The intensity scaling of the image is not finite.",
    "E-NIFTI-NAN": "The image holds NaN or infinite values inside the mask.",
    "E-GZIP": "The compressed stream is damaged or cut (checksum or length do not agree).",
    "E-AFFINE": "The affine is missing, singular or not finite.",
    "E-ORIENT": "qform and sform disagree about orientation or position.",
    "E-TR-UNITS": "The unit of the repetition time is missing or impossible.",
    "E-TR-RANGE": "The repetition time lies outside 0.2 to 10 seconds.",
    "E-TR-MISMATCH": "Header and JSON sidecar state different repetition times.",
    "E-SIDECAR": "The JSON sidecar is no JSON object, or its RepetitionTime is no number.",
    "E-GRID": "Two images that must share one voxel grid do not.",
    "E-MASK": "A mask holds more than zero and one further value.",
    "E-MASK-EMPTY": "A mask selects no voxel, or the data inside it are constant.",
    # grayordinates
    "E-CIFTI": "The file is not a readable CIFTI-2 file, or holds another kind of matrix than is needed.",
    "E-GIFTI": "The file is not a readable GIFTI surface.",
    "E-BRAIN-MODELS": "CIFTI files that must share surfaces, volume or grayordinates do not.",
    # tables
    "E-TABLE": "A table cannot be read as numbers.",
    "E-TABLE-SHAPE": "A table does not have the rows or columns that are needed.",
    "E-TABLE-NAN": "A table holds NaN or infinite values where numbers are needed.",
    "E-ORIENTATION": "The orientation of a time-series table is not stated or contradicts the data.",
    "E-CONFOUND-ROWS": "The confound table has another number of rows than the run has frames.",
    "E-CONFOUND-COLUMN": "A confound column that was asked for does not exist.",
    "E-CONFOUND-NAN": "A confound column holds NaN or infinite values beyond its first row.",
    "E-CONFOUND-RANK": "Some confounds are sums of others, so that one of them is not needed.",
    "E-COMPONENTS": "A list of noise components does not fit its mixing matrix, or one of the two is missing.",
    "E-EVENTS": "A table of events lacks onset, duration or trial_type, or holds none that the run sees.",
    # denoising
    "E-BAND": "The frequency band is empty, negative or above the Nyquist frequency.",
    "E-NO-FRAMES": "Censoring leaves no frame.",
    "E-SMOOTH": "Smoothing is asked for where there is no grid of voxels.",
    "E-DF": "Too few degrees of freedom are left after denoising.",
    # nodes and netmats
    "E-ATLAS": "The atlas has no labels, or its label table does not fit.",
    "E-NODES": "A node set is empty, or none of its nodes is covered by data.",
    "E-NETMAT-RANK": "The covariance cannot be inverted: too few frames for this many nodes.",
    "E-ICA-CONVERGENCE": "Independent component analysis did not converge.",
    "E-NETMAT-CONVERGENCE": "A sparse netmat could not be estimated with this penalty.",
    # schema
    "E-SCHEMA": "A Dataset lacks a variable, or has it with the wrong dimensions or type.",
    "E-ARGUMENT": "An argument is outside its allowed values.",
    # group inference
    "E-DESIGN-FORMULA": "The formula of a contrast cannot be evaluated.",
    "E-DESIGN-LEVELS": "A factor does not have the levels that the test needs.",
    "E-DESIGN-RANK": "The design matrix is rank-deficient.",
    "E-CONTRAST": "A contrast is not estimable, empty or of the wrong length.",
    "E-COV-NAN": "A covariate is missing or not finite for an observation.",
    "E-NO-FEATURES": "No feature is left to test: all are missing or do not vary.",
    "E-TOO-FEW": "There are too few observations for the test.",
    "E-PERMUTATIONS": "A permutation or sign table is malformed.",
    "E-PATTERNS": "Missing observations form too many patterns to refit each of them.",
    "E-BLOCKS": "Exchangeability blocks or variance groups do not fit the design.",
    # store
    "E-STORE-MISSING": "There is no study store at this path.",
    "E-STORE-SCHEMA": "The store was written by a version that this one does not know.",
    "E-STORE-UNSEALED": "A group of the store was never sealed.",
    "E-STORE-CORRUPT": "A stored chunk, manifest or pointer does not match its checksum.",
    "E-STORE-LOCKED": "Another process is writing to this store.",
    "E-STORE-LOST": "Another process wrote to this store, or took it over, while this one was writing.",
    # object storage
    "E-BUCKET": "The bucket of the store does not exist, or its storage cannot hold a store.",
    "E-CREDENTIALS": "The object storage refuses the credentials, or there are none.",
    "E-ENDPOINT": "The object storage does not answer, or answers with an error.",
    # resources
    "E-PERMISSION": "A file or folder may not be written or read.",
    "E-DISK": "The disk is full, or has less room than the plan needs.",
    "E-MEM": "A step needs more memory than a worker has.",
    "E-TIME": "A step would take longer than the study file allows.",
    "E-WORKER": "A worker died or stopped answering.",
    "E-TLS": "A certificate is not good, or a connection to another machine would not be encrypted.",
    "E-CODE-VERSION": "A worker runs another version of kconn than the plan was made with.",
    "E-INTERNAL": "An error that kconn did not foresee; the log holds the details.",
}


class KconnError(Exception):
    """An error that a user can act on.

    Parameters
    ----------
    code
        One of `CODES`.
    problem
        What is wrong, naming the value that was found.
    where
        The place: ``sub-01/ses-1/run-1``, a file name, a key of the study file.
    rule
        What would have been right.
    fix
        What the reader can do about it.

    Attributes
    ----------
    details
        For the log, never for the screen: the traceback of an error that nobody foresaw.
    """

    details: str = ""

    def __init__(self, code: str, problem: str, *, where: str = "", rule: str = "", fix: str = "") -> None:
        if code not in CODES:
            raise KeyError(f"unknown error code {code!r}; add it to kconn.errors.CODES")
        super().__init__(code, problem)
        self.code = code
        self.problem = problem
        self.where = where
        self.rule = rule
        self.fix = fix

    def __str__(self) -> str:
        """One paragraph: code, place, problem, rule, fix."""
        place = f" [{self.where}]" if self.where else ""
        rule = f" Rule: {self.rule}" if self.rule else ""
        fix = f" Fix: {self.fix}" if self.fix else ""
        return f"{self.code}{place} {self.problem}{rule}{fix}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive the way back from a worker."""
        return (_rebuild, (type(self), self.code, self.problem, self.where, self.rule, self.fix, self.details))

    def at(self, where: str, *, anew: bool = False) -> KconnError:
        """Return the same error with its place put in, where none was known when it was raised, or ``anew``."""
        place = where if anew else self.where or where
        return _rebuild(type(self), self.code, self.problem, place, self.rule, self.fix, self.details)


def _rebuild(cls: type[KconnError], *fields: str) -> KconnError:
    code, problem, where, rule, fix, details = fields
    error = cls(code, problem, where=where, rule=rule, fix=fix)
    error.details = details
    return error


def first_of(problems: Sequence[KconnError]) -> KconnError:
    """Return the first of several errors, saying how many there are."""
    first = problems[0]
    if len(problems) == 1:
        return first
    more = f" (and {len(problems) - 1} more; `kconn check` lists all)"
    fields = (first.where, first.rule, first.fix, first.details)
    return _rebuild(type(first), first.code, first.problem + more, *fields)


def some_of(names: Sequence[str], most: int) -> str:
    """Return the first of some names, saying how many there are besides: ``a, b and 3 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def unforeseen(error: BaseException, *, what: str = "kconn", where: str = "") -> KconnError:
    """Return the error of ours that stands for one that was not caught where it arose.

    A full disk, a place that cannot be written and lack of memory can strike anywhere. What is left is an error that
    nobody foresaw, with its traceback in ``details`` for the log.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return ResourceError(
            "E-DISK",
            "the disk is full",
            where=where,
            rule="a step needs room for its result",
            fix="free space and run again: finished steps are kept",
        )
    if isinstance(error, OSError) and number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return ResourceError(
            "E-PERMISSION",
            f"{what} may not use {Path(error.filename or '').name!r}: {error.strerror}",
            where=where,
            rule="inputs can be read; store, report and what is beside them can be written",
            fix="change the permissions, or put [study] store and report where you may write",
        )
    if isinstance(error, MemoryError):
        return ResourceError(
            "E-MEM",
            f"{what} ran out of memory",
            where=where,
            rule="`kconn plan` prints what a worker needs",
            fix="run with fewer workers, or on a machine with more memory",
        )
    found = KconnError(
        "E-INTERNAL",
        f"{what} failed with {type(error).__name__}",
        where=where,
        rule="kconn foresees its errors; this one it did not",
        fix="report it with the log; what was finished is kept",
    )
    found.details = "".join(traceback.format_exception(error))
    return found


class InputError(KconnError):
    """A file or table that kconn was given is not what it must be."""


class StudyFileError(KconnError):
    """The study file is wrong."""


class SchemaError(KconnError, ValueError):
    """A Dataset or argument does not fit the data model."""


class DesignError(KconnError, ValueError):
    """A design, contrast or permutation table does not fit the data."""


class StoreError(KconnError):
    """The store is missing, damaged, unsealed or in use."""


class ResourceError(KconnError):
    """Disk, memory or workers do not suffice."""
