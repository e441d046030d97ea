"""The design of a contrast as files that FSL randomise and PALM take, with the ids of its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.errors import DesignError, StudyFileError
from kconn.infer.permuting import Test
from kconn.io import cubes, derivatives, designs, store
from kconn.io.files import write_atomic
from kconn.study.contrasts import Arrangement
from kconn.study.rehearsal import rehearse_test
from kconn.study.survey import arrange_contrast, expect_cohort
from kconn.study.test_tables import PermutationTable
from kconn.study.workbench import Workbench

Format = Literal["fsl", "palm"]
#: Keys of ``[permutation]`` that the files stand for.
_IN_FILES: Final = frozenset({"exchangeability_blocks", "exchange", "variance_groups", "sign_flip"})
#: Statistic -> options of PALM.
_PALM_STATISTIC: Final = {
    "tfce": "-T",
    "cluster-extent": "-C {threshold:g}",
    "cluster-mass": "-C {threshold:g} -Cstat mass",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenDesign:
    """``files`` that were written, the ``command`` that takes them, whether exclusions are known (``from_results``)."""

    files: tuple[Path, ...]
    command: str
    from_results: bool


def write_design(bench: Workbench, name: str, out: Path, *, form: Format) -> WrittenDesign:
    """Write design, contrasts, blocks, relabellings and ids of a contrast.

    Rows are in the order of the ids. Where the cohort is published its observations are the rows; else all that have
    runs, as if every run were usable.

    Parameters
    ----------
    bench
        The study.
    name
        The contrast.
    out
        A folder that is new or holds an earlier one of the same contrast.
    form
        ``fsl``: ``.mat .con .fts .grp``; ``palm``: tables of comma-separated numbers.

    Raises
    ------
    StudyFileError
        ``E-STUDY-VALUE`` if there is no such contrast, or it has a regressor of its own for each feature.
    DesignError
        ``E-BLOCKS`` if blocks or variance groups have no place in FSL's files.
    InputError
        ``E-FILE-EXISTS`` if the folder holds something else.
    """
    study = bench.study
    if name not in study.contrasts:
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"there is no contrast {name!r}",
            rule=f"the study has {', '.join(study.contrasts) or 'none'}",
            fix="name one of them",
        )
    cohort, from_results = _find_cohort(bench)
    arrangement = arrange_contrast(study, name, cohort, bench.survey.participants, bench.survey.sessions)
    if arrangement.test.baseline is not None:
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"contrasts.{name} has a baseline, a regressor of its own for each feature",
            rule="files of a design hold what all features share",
            fix="name another contrast, or test it with kconn",
        )
    tests = rehearse_test(arrangement, n_perm=arrangement.n_perm)
    ids = sorted(map(str, arrangement.test.design.index))
    order = arrangement.test.design.index.get_indexer(pd.Index(ids))
    contrasts = _name_contrasts(arrangement, name)
    exchange = _find_exchange(arrangement, order)
    if form == "fsl":
        _refuse_what_fsl_lacks(arrangement, exchange)
    pieces = _Pieces(
        stem=name,
        matrix=arrangement.test.design.iloc[order].to_numpy(dtype=np.float64),
        contrasts=contrasts,
        exchange=exchange,
        groups=_number_groups(arrangement, order),
    )
    n_tests = sum(np.ndim(weights) > 1 for weights in contrasts.values())
    roles = pieces.roles(form, has_f=n_tests > 0)
    tables = {f"{_stem(name, test, tests)}_permutations.csv": test for test in tests}
    command = _command(arrangement, roles, exchange, form)
    texts = {
        f"{name}.toml": _study_text(study.contrasts[name].hypothesis, arrangement, name, roles, exchange),
        f"{name}_command.txt": command + "\n",
    }
    derivatives.check_folder(out, [*roles.values(), *tables, *texts])
    pieces.write(out, roles, form)
    designs.write_ids(out / roles["ids"], [row if "_ses-" in row else f"sub-{row}" for row in ids])
    for file, test in tables.items():
        designs.write_relabellings(out / file, test.shuffling.permutations, test.shuffling.signs)
    for file, text in texts.items():
        write_atomic(out / file, text.encode())
    files = tuple(out / file for file in (*roles.values(), *tables, *texts))
    return WrittenDesign(files=files, command=command, from_results=from_results)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exchange:
    """Blocks ``(n_obs, n_level)`` as the tool numbers them, and what the study file calls the exchange."""

    blocks: npt.NDArray[np.int64] | None
    words: Literal["within", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """What the files hold."""

    stem: str
    matrix: npt.NDArray[np.float64]
    contrasts: Mapping[str, npt.NDArray[np.float64]]
    exchange: _Exchange
    groups: npt.NDArray[np.int64] | None

    def roles(self, form: Format, *, has_f: bool) -> dict[str, str]:
        """Return role -> file name."""
        known = {
            "ids": True,
            "design": True,
            "contrasts": True,
            "ftests": has_f,
            "blocks": self.exchange.blocks is not None,
            "variance_groups": self.groups is not None,
        }
        suffixes = {"design": ".mat", "contrasts": ".con", "ftests": ".fts", "blocks": ".grp"} if form == "fsl" else {}
        return {
            role: f"{self.stem}{suffixes.get(role, f'_{role}.txt' if role == 'ids' else f'_{role}.csv')}"
            for role, is_there in known.items()
            if is_there
        }

    def write(self, out: Path, roles: Mapping[str, str], form: Format) -> None:
        """Write all but the ids."""
        blocks = self.exchange.blocks
        if form == "fsl":
            groups = None if blocks is None else np.abs(blocks[:, 0])
            designs.write_fsl_design(out / self.stem, self.matrix, self.contrasts, groups)
            return
        rows = [row for weights in self.contrasts.values() for row in np.atleast_2d(weights)]
        designs.write_palm_table(out / roles["design"], self.matrix)
        designs.write_palm_table(out / roles["contrasts"], np.array(rows))
        if "ftests" in roles:
            designs.write_palm_table(out / roles["ftests"], _choose_rows(self.contrasts))
        if blocks is not None:
            designs.write_palm_table(out / roles["blocks"], blocks)
        if self.groups is not None:
            designs.write_palm_table(out / roles["variance_groups"], self.groups[:, None])


def _find_cohort(bench: Workbench) -> tuple[xr.DataArray, bool]:
    """Return the observations of the first cohort that is published, or those that there can be."""
    for step in bench.plan.steps:
        if step.stage == "cohort" and store.is_published(bench.study.store, step.address, step.key):
            return cubes.open_group(bench.study.store, step.address)["netmat"], True
    return expect_cohort([facts.run for facts in bench.survey.runs]), False


def _name_contrasts(arrangement: Arrangement, name: str) -> dict[str, npt.NDArray[np.float64]]:
    contrasts = arrangement.test.contrasts
    return dict(contrasts) if arrangement.test.is_set else {name: next(iter(contrasts.values()))}


def _stem(name: str, test: Test, tests: list[Test]) -> str:
    return name if len(tests) == 1 else f"{name}_{derivatives.bids_label(test.name)}"


def _find_exchange(arrangement: Arrangement, order: npt.NDArray[np.intp]) -> _Exchange:
    if arrangement.blocks is None:
        return _Exchange(blocks=None, words="within")
    blocks = arrangement.blocks.to_numpy(dtype=np.int64)[order]
    return _Exchange(blocks=blocks, words="whole" if blocks.shape[1] == 1 and blocks[0, 0] < 0 else "within")


def _number_groups(arrangement: Arrangement, order: npt.NDArray[np.intp]) -> npt.NDArray[np.int64] | None:
    if arrangement.variance_groups is None:
        return None
    labels = arrangement.variance_groups.to_numpy()[order]
    return np.asarray(np.unique(labels, return_inverse=True)[1] + 1, dtype=np.int64)


def _refuse_what_fsl_lacks(arrangement: Arrangement, exchange: _Exchange) -> None:
    if arrangement.variance_groups is not None or (exchange.blocks is not None and exchange.blocks.shape[1] > 1):
        what = "variance groups" if arrangement.variance_groups is not None else "blocks of several levels"
        raise DesignError(
            "E-BLOCKS",
            f"the contrast has {what}, which randomise does not know",
            rule="FSL's files hold one level of exchangeability blocks",
            fix="write it with --format palm",
        )


def _choose_rows(contrasts: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return PALM's table of F contrasts: one row each, 1 where it takes a row of the contrasts."""
    n_rows = [len(np.atleast_2d(weights)) for weights in contrasts.values()]
    starts = np.concatenate([[0], np.cumsum(n_rows)])
    chosen = [
        np.isin(np.arange(starts[-1]), np.arange(start, start + n)).astype(float)
        for start, n, weights in zip(starts, n_rows, contrasts.values(), strict=False)
        if np.ndim(weights) > 1
    ]
    return np.array(chosen)


def _study_text(
    hypothesis: Mapping[str, Any], arrangement: Arrangement, name: str, roles: Mapping[str, str], exchange: _Exchange
) -> str:
    """Return the table of the study file that reads these files, paths beside it."""
    lines = [f"[contrasts.{name}]", 'test = "design"']
    per_session = hypothesis["test"] == "repeated" or hypothesis["rows"] == "session"
    data = {
        "rows": "session" if per_session else None,
        "sessions": hypothesis["sessions"],
        "change": hypothesis["change"],
    }
    lines += [f"{key} = {json.dumps(value)}" for key, value in data.items() if value is not None]
    defaults = PermutationTable().model_dump(mode="json")
    options = {**arrangement.options, "n_perm": arrangement.n_perm}
    lines += [
        f"{key} = {json.dumps(value)}"
        for key, value in options.items()
        if key not in _IN_FILES and (value != defaults[key] or key in {"n_perm", "seed"})
    ]
    if arrangement.sign_flip is not False:
        lines.append(f"sign_flip = {json.dumps(arrangement.sign_flip)}")
    if "blocks" in roles and exchange.words == "whole" and roles["blocks"].endswith(".grp"):
        lines.append('exchange = "whole"')
    lines.append(f"files = {{ {', '.join(f'{role} = {json.dumps(file)}' for role, file in roles.items())} }}")
    return "\n".join(lines) + "\n"


def _command(arrangement: Arrangement, roles: Mapping[str, str], exchange: _Exchange, form: Format) -> str:
    """Return the command line that tests data whose rows (volumes) are in the order of the ids."""
    options, flips = arrangement.options, arrangement.sign_flip
    if form == "fsl":
        parts = [f"randomise -i data.nii.gz -o {roles['design'].removesuffix('.mat')}"]
        parts += [f"-d {roles['design']} -t {roles['contrasts']}"]
        parts += [f"-f {roles['ftests']}"] if "ftests" in roles else []
        parts += [f"-e {roles['blocks']}"] if "blocks" in roles else []
        parts += ["--permuteBlocks"] if "blocks" in roles and exchange.words == "whole" else []
        parts += ["-1"] if flips is True else []
        parts += ["-x"]
    else:
        parts = [f"palm -i data.csv -d {roles['design']} -t {roles['contrasts']}"]
        parts += [f"-f {roles['ftests']}"] if "ftests" in roles else []
        parts += [f"-eb {roles['blocks']}"] if "blocks" in roles else []
        parts += [f"-vg {roles['variance_groups']}"] if "variance_groups" in roles else []
        parts += {True: ["-ise"], False: [], "both": ["-ee -ise"]}[flips]
        parts += ["-twotail"] if options["alternative"] == "two-sided" else []
        parts += ["-corrcon"] if options["joint_fwe"] else []
        parts += [_PALM_STATISTIC.get(options["statistic"], "").format(**options)]
    return " ".join(part for part in [*parts, f"-n {arrangement.n_perm}"] if part)
