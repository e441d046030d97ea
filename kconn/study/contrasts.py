"""A contrast of the study file, from its words and files to one call of `kconn.permutation_test`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.connect.cohort import average_sessions
from kconn.errors import DesignError, InputError, ResourceError
from kconn.infer.blocks import code_blocks, read_groups, refuse_dependent, sign_blocks
from kconn.infer.checkpoint import Checkpoint
from kconn.infer.design import Hypothesis, SuppliedDesign, TestInput, build_test, name_row
from kconn.infer.inference import permutation_test
from kconn.io import designs
from kconn.io.designs import DesignFiles
from kconn.io.identifiers import canonical_label
from kconn.kernels.clusters import Neighbours, Tfce, network_pairs
from kconn.kernels.sequential import Sequential
from kconn.study.test_tables import OF_NEIGHBOURS

#: Bytes per pair of neighbours while a graph is built, measured on 14,706 edges.
_PAIR_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Everything that one call of `kconn.permutation_test` needs.

    Attributes
    ----------
    test
        Data, design and contrasts.
    options
        The keys of ``[permutation]``, those of the contrast put over them.
    blocks
        Exchangeability blocks ``(observation, level)``, signed as PALM's, or None.
    variance_groups
        A label per observation, or None.
    permutations, signs
        Tables ``(permutation, observation)`` in the order of the rows of ``test``, or None.
    """

    test: TestInput
    options: Mapping[str, Any]
    blocks: pd.DataFrame | None
    variance_groups: pd.Series[Any] | None
    permutations: npt.NDArray[np.int64] | None
    signs: npt.NDArray[np.int64] | None

    @property
    def n_perm(self) -> int:
        """Relabellings: those of the table where one is supplied."""
        table = self.signs if self.permutations is None else self.permutations
        return int(self.options["n_perm"]) if table is None else len(table)

    @property
    def sign_flip(self) -> bool | Literal["both"]:
        """Whether signs are flipped: as asked, else where a mean is tested."""
        asked: bool | Literal["both"] | None = self.options["sign_flip"]
        return self.test.sign_flip if asked is None else asked


def arrange_test(
    cohort: xr.DataArray,
    participants: pd.DataFrame,
    sessions: pd.DataFrame | None,
    params: Mapping[str, Any],
    files: Mapping[str, Path],
) -> Arrangement:
    """Return the call that tests a contrast.

    Parameters
    ----------
    cohort
        ``(observation, feature...)`` with coords ``subject`` and ``session`` along ``observation``.
    participants, sessions
        The tables about people, see `kconn.infer.design.build_test`.
    params
        ``hypothesis``: what is tested; ``permutation``: the keys of ``[permutation]``; ``visits``, where the contrast
        names some: visit -> the sessions that it is the mean of.
    files
        Role -> path of the ``files`` of the contrast.

    Raises
    ------
    DesignError
        As `kconn.infer.design.build_test`, and ``E-BLOCKS``, ``E-ID-MISSING``.
    InputError
        As `kconn.io.designs.read_design_files`.
    """
    hypothesis = Hypothesis.of(params["hypothesis"])
    options = params["permutation"]
    if params.get("visits"):
        cohort = average_visits(cohort, params["visits"])
    found = designs.read_design_files(files) if files else None
    supplied = None if found is None else _supplied(found, hypothesis)
    test = build_test(cohort, participants, sessions, hypothesis, supplied=supplied)
    blocks, groups = _read_blocks(test.rows, options, hypothesis), None
    if options["variance_groups"] != "none":
        groups = read_groups(test.rows, options["variance_groups"])
    permutations = signs = None
    if found is not None and supplied is not None:
        place = pd.Index(supplied.ids).get_indexer(test.design.index)
        if found.blocks is not None:
            signed = sign_blocks(found.blocks, exchange=options["exchange"])
            blocks = pd.DataFrame(signed[place], index=test.design.index)
        if found.variance_groups is not None:
            groups = pd.Series(found.variance_groups[place], index=test.design.index)
        permutations, signs = _place_tables(found, supplied, test)
    has_table = permutations is not None or signs is not None
    if hypothesis.per_session and blocks is None and not has_table:
        refuse_dependent(test.rows)
    return Arrangement(
        test=test, options=options, blocks=blocks, variance_groups=groups, permutations=permutations, signs=signs
    )


def average_visits(cohort: xr.DataArray, visits: Mapping[str, Sequence[str]]) -> xr.DataArray:
    """Return a cohort whose sessions of a visit are one: of each subject the mean of those that it has.

    Raises
    ------
    InputError
        As `kconn.connect.cohort.average_sessions`.
    """
    return average_sessions(cohort.to_dataset(name="tested"), visits)["tested"].drop_vars("n_session")


def run_test(
    arrangement: Arrangement, *, neighbours: Neighbours | None = None, checkpoint: Checkpoint | None = None
) -> xr.Dataset:
    """Return the result of `kconn.permutation_test`: dims ``(contrast, feature...)``.

    Parameters
    ----------
    arrangement
        The call.
    neighbours
        Of grayordinates; None where `find_neighbours` knows them.
    checkpoint
        Where finished ranges of relabellings are kept.
    """
    options, test = arrangement.options, arrangement.test
    statistic = options["statistic"]
    return permutation_test(
        test.data,
        test.design,
        test.contrasts,
        n_perm=arrangement.n_perm,
        seed=options["seed"],
        alternative=options["alternative"],
        exchangeability_blocks=arrangement.blocks,
        sign_flip=arrangement.sign_flip,
        variance_groups=arrangement.variance_groups,
        regression=options["regression"],
        permutations=arrangement.permutations,
        signs=arrangement.signs,
        statistic=statistic,
        neighbours=neighbours or find_neighbours(test.data, options),
        threshold=options["threshold"],
        tfce=read_tfce(options),
        convention=options["convention"],
        joint_fwe=options["joint_fwe"],
        fdr=options["fdr"],
        tail=options["tail"],
        missing=options["missing"],
        dtype=options["dtype"],
        max_mem=options["max_mem"],
        checkpoint=checkpoint,
        feature_covariates=test.baseline,
        stopping=None if options["stopping"] == "none" else Sequential(n_exceed=options["stopping"]),
    )


def describe_exchange(arrangement: Arrangement) -> str:
    """Return which observations change places, in words; empty where any may."""
    blocks = arrangement.blocks
    if arrangement.permutations is not None or arrangement.signs is not None:
        return "as the supplied table says"
    if blocks is None:
        return ""
    table = blocks.to_numpy()
    n_block = len(np.unique(np.abs(table[:, -1])))
    unit = "subjects" if _is_subjects(arrangement) else "blocks"
    if table.shape[1] == 1:
        return f"within each of {n_block} {unit}" if table[0, 0] > 0 else f"{n_block} {unit} as wholes"
    if table.shape[1] == 2 and (table[:, 0] == 1).all() and (table[:, 1] > 0).all():
        return f"{n_block} {unit} as wholes, and within each"
    return f"within and between blocks of {table.shape[1]} levels"


def _is_subjects(arrangement: Arrangement) -> bool:
    """Return whether the blocks are the subjects."""
    rows, blocks = arrangement.test.rows, arrangement.blocks
    if blocks is None or "subject" not in rows or blocks.shape[1] != 1:
        return False
    return bool(rows["subject"].groupby(np.abs(blocks.iloc[:, 0])).nunique().eq(1).all()) and (
        rows["subject"].nunique() == blocks.iloc[:, 0].nunique()
    )


def split_contrasts(result: xr.Dataset, name: str) -> dict[str, xr.Dataset]:
    """Return the contrasts of a published test one by one, by the name that a reader knows them by.

    Parameters
    ----------
    result
        Of one contrast, or with the dim ``contrast`` where the test has several under one design.
    name
        Of the test in the study file.
    """
    if "contrast" not in result.dims:
        return {name: result}
    found = {}
    for i, label in enumerate(map(str, result["contrast"].to_numpy())):
        one = result.isel(contrast=i)
        notes = [note.split(": ", 1)[1] for note in result.attrs["notes"] if note.startswith(f"{label}: ")]
        counts = {key: [result.attrs[key][i]] for key in ("n_missing", "n_constant")}
        attrs = {"question": result.attrs["questions"][i], "notes": notes}
        attrs |= {key: [result.attrs[key][i]] for key in ("weights", "baseline_weights") if key in result.attrs}
        found[f"{name}-{label}"] = one.assign_attrs({**one.attrs, **attrs, **counts})
    return found


def _supplied(found: DesignFiles, hypothesis: Hypothesis) -> SuppliedDesign:
    ids = tuple(_read_id(name, hypothesis) for name in found.ids)
    if found.matrix is None:
        return SuppliedDesign(ids=ids)
    columns = [f"ev{i + 1}" for i in range(found.matrix.shape[1])]
    return SuppliedDesign(
        ids=ids, design=pd.DataFrame(found.matrix, index=list(ids), columns=columns), contrasts=found.contrasts
    )


def _read_id(name: str, hypothesis: Hypothesis) -> str:
    """Return an id as kconn writes it: ``sub-01`` is the subject 01, ``sub-01_ses-1`` a session of it."""
    subject, mark, session = name.partition("_ses-")
    if bool(mark) != hypothesis.per_session:
        raise InputError(
            "E-ID",
            f"{name!r} is the id of a {'session' if mark else 'subject'}",
            rule="rows are sessions, named sub-01_ses-1" if hypothesis.per_session else "rows are subjects",
            fix="correct the list of ids, or 'rows' of the contrast",
        )
    subject = canonical_label(subject, prefix="sub")
    return name_row(subject, canonical_label(session, prefix="ses")) if mark else subject


def _read_blocks(rows: pd.DataFrame, options: Mapping[str, Any], hypothesis: Hypothesis) -> pd.DataFrame | None:
    """Return the blocks that columns make; in a repeated test subjects, unless others are named."""
    given = options["exchangeability_blocks"]
    columns = [given] if isinstance(given, str) else given
    exchange = options["exchange"]
    if not columns and hypothesis.test == "repeated":
        # Sessions change places within a subject. A course that differs between groups is a property of subjects,
        # which then change places as wholes.
        columns, exchange = ["subject"], "whole" if hypothesis.effects else "within"
    return code_blocks(rows, columns, exchange=exchange) if columns else None


def _place_tables(
    found: DesignFiles, supplied: SuppliedDesign, test: TestInput
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64] | None]:
    """Return relabellings with the rows of the files in the order of the test."""
    if found.permutations is None and found.signs is None:
        return None, None
    place = pd.Index(test.design.index).get_indexer(pd.Index(supplied.ids))
    if (place < 0).any():
        lost = [name for name, i in zip(supplied.ids, place, strict=True) if i < 0]
        raise DesignError(
            "E-ID-MISSING",
            f"{len(lost)} row(s) of the table of relabellings have no data: {', '.join(lost[:5])}",
            rule="a table of relabellings fits one set of observations, and all of them",
            fix="make the table for the observations that are tested; `kconn design` writes their ids",
        )
    back = np.argsort(place)
    permutations = None
    if found.permutations is not None:
        valid = (found.permutations >= 0) & (found.permutations < len(place))
        # What is no position is left as it is, for the check of the table to name.
        moved = np.where(valid, place[np.where(valid, found.permutations, 0)], found.permutations)
        permutations = moved[:, back]
    return permutations, None if found.signs is None else found.signs[:, back]


def find_neighbours(data: xr.DataArray, options: Mapping[str, Any]) -> int | npt.NDArray[np.int64] | None:
    """Return the connectivity of voxels, or the pairs of edges that share a node, where the statistic looks at them."""
    if options["statistic"] not in OF_NEIGHBOURS:
        return None
    if "node_i" not in data.coords:
        given: int | None = options["neighbours"]
        return given
    ends = [data[name].to_numpy().astype(str) for name in ("node_i", "node_j")]
    degree = np.unique(np.concatenate(ends), return_counts=True)[1].astype(np.int64)
    n_bytes = _PAIR_BYTES * int((degree * (degree - 1) // 2).sum())
    if n_bytes > options["max_mem"]:
        raise ResourceError(
            "E-MEM",
            f"the neighbours of {len(ends[0])} edges need about {n_bytes / 1e9:.1f} GB",
            rule=f"max_mem is {options['max_mem'] / 1e9:.1f} GB",
            fix="take statistic = 'nbs', which needs no pairs, or raise max_mem",
        )
    return network_pairs(*ends)


def read_tfce(options: Mapping[str, Any]) -> Tfce | None:
    """Return the parameters of enhancement, or None where none is set."""
    given = {key: options[f"tfce_{key}"] for key in ("height", "extent", "step")}
    named = {key: value for key, value in given.items() if value is not None}
    return Tfce(**named) if named else None
