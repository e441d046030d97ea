"""``[permutation]`` and ``[contrasts]``: what is tested, and how p-values are computed."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from kconn.chunks import GIB
from kconn.study.table import Cell, Off, Table

#: Weights of columns: one table for a t, several for an F.
Weights = dict[str, float] | list[dict[str, float]]


#: What a file of another tool holds; each has one row per line of ``ids``, but for the two of contrasts.
DesignRole = Literal["ids", "design", "contrasts", "ftests", "blocks", "variance_groups", "permutations", "signs"]


#: Test -> how many columns its ``effect`` names; the others have none.
EFFECTS_OF: Final[dict[str, range]] = {
    "two-sample": range(1, 2),
    "covariate": range(1, 2),
    "f-test": range(1, 100),
    "interaction": range(2, 3),
    "repeated": range(2),
}


_MEANING_OF_EFFECT: Final = {
    "two-sample": "the column that is tested",
    "covariate": "the column that is tested",
    "f-test": "the term or terms of the formula that are tested together",
    "interaction": "two columns [A, B]",
    "repeated": "one column at most, whose levels differ in their course",
}


_INSTEAD_OF_EFFECT: Final = {
    "paired": ": it tests the mean",
    "one-sample": ": it tests the mean",
    "design": ": 'weights' or 'files' say what is tested",
}


#: Key of ``[contrasts.NAME]`` -> the tests that it belongs to; all other keys belong to every test.
TESTS_OF: Final[dict[str, tuple[str, ...]]] = {
    "levels": ("two-sample", "interaction"),
    "rows": ("design",),
    "weights": ("design",),
}


#: Keys that belong to the statistic: a contrast that names its own statistic does not inherit them.
OF_STATISTIC: Final = frozenset({"threshold", "neighbours", "tfce_height", "tfce_extent", "tfce_step", "stopping"})


#: Keys that belong to the observations: a repeated test, whose rows are sessions, does not inherit them.
OF_ROWS: Final = frozenset({"exchangeability_blocks", "exchange"})


#: Statistics that look at neighbouring features, which voxels and grayordinates have to be told.
OF_NEIGHBOURS: Final = frozenset({"cluster-extent", "cluster-mass", "tfce"})


Extent = Literal["vertices", "mm2"]


class SurfacesTable(Table):
    """``[surfaces]``: GIFTI surfaces of CIFTI runs, along which vertices are neighbours in clusters and ``tfce``."""

    left: Annotated[
        str | None, Field(description="midthickness of the left hemisphere, a .surf.gii, relative to this file")
    ] = None
    right: Annotated[str | None, Field(description="the same of the right hemisphere")] = None
    extent: Annotated[
        Extent, Field(description="extents on surfaces count vertices, or are areas in mm2; a voxel counts 1")
    ] = "vertices"

    @model_validator(mode="after")
    def _names_a_surface(self) -> Self:
        if not self.files():
            raise ValueError("[surfaces] names no surface: give 'left', 'right' or both")
        return self

    def files(self) -> dict[str, str]:
        """Return role -> path of every file."""
        named = {"surface_left": self.left, "surface_right": self.right}
        return {role: path for role, path in named.items() if path is not None}


class PermutationTable(Table):
    """``[permutation]``: how p-values are computed. Each key may stand in a contrast too, for that one alone."""

    n_perm: Annotated[int, Field(ge=2, description="relabellings, the identity included")] = 5000
    seed: Annotated[int, Field(ge=0, description="of the permutation table")] = 20260101
    alternative: Annotated[Literal["two-sided", "greater", "less"], Field(description="sidedness of every p")] = (
        "two-sided"
    )
    exchangeability_blocks: Annotated[
        str | list[str],
        Field(description="column of blocks, such as family or site; several: PALM's levels, outermost first"),
    ] = Field(default_factory=list[str])
    exchange: Annotated[
        Literal["within", "whole", "both"],
        Field(description="exchange observations within a block, whole blocks, or both"),
    ] = "within"
    sign_flip: Annotated[
        bool | Literal["both"] | None,
        Field(description="true: flip signs; both: permute as well. Not set: flip where a mean is tested"),
    ] = None
    variance_groups: Annotated[str | Off, Field(description="column; each group has its own variance (v, G)")] = "none"
    regression: Annotated[
        Literal["freedman-lane", "dekker", "draper-stoneman", "ter-braak", "manly"],
        Field(description="how nuisance is dealt with"),
    ] = "freedman-lane"
    statistic: Annotated[
        Literal["edge", "voxel", "nbs", "cluster-extent", "cluster-mass", "tfce"],
        Field(description="edge, voxel: each feature by itself; the others: neighbouring ones together"),
    ] = "edge"
    threshold: Annotated[
        float | None, Field(gt=0, description="nbs and clusters: z (fsl: the statistic; nilearn: p) that forms them")
    ] = None
    neighbours: Annotated[
        Literal[6, 18, 26] | None, Field(description="of voxels; edges are neighbours if they share a node")
    ] = None
    tfce_height: Annotated[float | None, Field(gt=0, description="exponent H of tfce; 2 if not set")] = None
    tfce_extent: Annotated[float | None, Field(gt=0, description="exponent E of tfce; 0.5 if not set")] = None
    tfce_step: Annotated[
        Annotated[float, Field(gt=0)] | Literal["map", "observed", "exact"] | None,
        Field(description="distance of heights of tfce; that of the convention if not set"),
    ] = None
    convention: Annotated[
        Literal["kconn", "palm", "fsl", "nilearn"], Field(description="whose rules clusters and maxima follow")
    ] = "kconn"
    joint_fwe: Annotated[bool, Field(description="correct over all contrasts of one design as well")] = False
    fdr: Annotated[Literal["bh", "bky"], Field(description="Benjamini-Hochberg, or the two-stage procedure")] = "bh"
    tail: Annotated[Literal["counts", "gpd"], Field(description="gpd: small p from a fitted Pareto tail")] = "counts"
    stopping: Annotated[
        Annotated[int, Field(ge=1)] | Off,
        Field(description="a feature stops at so many relabellings at least as extreme; p_unc and p_fdr only"),
    ] = "none"
    missing: Annotated[
        Literal["exclude", "refit"],
        Field(description="a feature without data in some observation: leave it out, or test it in the others"),
    ] = "exclude"
    dtype: Annotated[Literal["float64", "float32"], Field(description="precision of permuted statistics")] = "float64"
    max_mem: Annotated[
        int, Field(ge=1, description="bytes that the tasks of one process may hold; changes no result")
    ] = 2 * GIB

    @property
    def block_columns(self) -> list[str]:
        """Columns of the exchangeability blocks, outermost first."""
        blocks = self.exchangeability_blocks
        return [blocks] if isinstance(blocks, str) else blocks


class ContrastTable(PermutationTable):
    """``[contrasts.NAME]``: one test over observations, or several under one design."""

    test: Annotated[
        Literal["two-sample", "paired", "one-sample", "covariate", "f-test", "interaction", "repeated", "design"],
        Field(description="what is tested"),
    ]
    formula: Annotated[
        str, Field(description="columns of the participants and sessions tables; the tested one and the nuisance")
    ] = "1"
    effect: Annotated[
        str | list[str] | None, Field(description="the column that is tested; f-test: term or terms; interaction: two")
    ] = None
    levels: Annotated[
        list[Cell] | dict[str, list[Cell]] | None,
        Field(description="two-sample: [A, B] tests B - A; interaction: such a pair for each column"),
    ] = None
    sessions: Annotated[
        list[str] | None, Field(min_length=1, description="sessions, averaged per subject; repeated: compared")
    ] = None
    change: Annotated[
        list[str | Annotated[list[str], Field(min_length=2)]] | None,
        Field(
            min_length=2,
            max_length=2,
            description="[A, B]: the data are B - A per subject; [[A1, A2], B]: B minus the mean of A1 and A2",
        ),
    ] = None
    baseline: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            description="sessions whose value of each feature is its own regressor: nuisance, or tested by 'weights'",
        ),
    ] = None
    family: Annotated[
        str | None, Field(description="family of [families]: its edges alone are tested, and corrected over")
    ] = None
    where: Annotated[
        dict[str, Cell | list[Cell]], Field(description="keep rows whose column has this value, or one of these")
    ] = Field(default_factory=dict)
    rows: Annotated[
        Literal["subject", "session"] | None, Field(description="design: one row per subject, or per session")
    ] = None
    weights: Annotated[
        Weights | dict[str, Weights] | None,
        Field(description="design: column -> weight for t, a list of such tables for F, or several of these by name"),
    ] = None
    files: Annotated[
        dict[DesignRole, str],
        Field(description="design, weights, blocks or relabellings of FSL, PALM or MRtrix3; ids says whose rows"),
    ] = Field(default_factory=dict)

    @property
    def roles(self) -> dict[str, str]:
        """Role -> path of ``files``."""
        return {str(role): path for role, path in self.files.items()}

    @property
    def hypothesis(self) -> dict[str, Any]:
        """What is tested, without how p-values are computed and without files."""
        return self.model_dump(mode="json", exclude={"files", "family", *PermutationTable.model_fields})

    def _sides(self) -> list[list[str]]:
        return [[side] if isinstance(side, str) else side for side in self.change or ()]

    def visits(self) -> list[str]:
        """Return the sessions of ``change``, in its order."""
        return [session for side in self._sides() for session in side]

    def visit_pairs(self) -> list[tuple[str, str]]:
        """Return every session before with every session after."""
        return [(before, after) for before, after in product(*self._sides())] if self.change else []

    @model_validator(mode="after")
    def _baseline_fits_the_rows(self) -> Self:
        if self.baseline is not None and (self.test == "repeated" or self.rows == "session"):
            raise ValueError("'baseline' belongs to tests whose rows are subjects")
        return self

    @model_validator(mode="after")
    def _fits_the_test(self) -> Self:
        needs_effect = EFFECTS_OF.get(self.test)
        n_effect = 0 if self.effect is None else 1 if isinstance(self.effect, str) else len(self.effect)
        if needs_effect is None and self.effect is not None:
            raise ValueError(f"a {self.test} test has no 'effect'{_INSTEAD_OF_EFFECT[self.test]}")
        if needs_effect is not None and n_effect not in needs_effect:
            raise ValueError(f"a {self.test} test needs 'effect', {_MEANING_OF_EFFECT[self.test]}")
        for key, tests in TESTS_OF.items():
            if getattr(self, key) is not None and self.test not in tests:
                raise ValueError(f"{key!r} belongs to a test of kind {' or '.join(tests)}")
        if self.test == "paired" and self.change is None:
            raise ValueError("a paired test needs 'change = [A, B]', the two visits")
        if self.change is not None and self.sessions is not None:
            raise ValueError("give 'sessions' or 'change', not both")
        if self.test == "repeated" and len(self.sessions or ()) < 2:
            raise ValueError("a repeated test needs 'sessions = [A, B, ...]', the first the reference")
        for key, named in (("change", self.visits()), ("sessions", self.sessions or ()), ("effect", self.effect or ())):
            if not isinstance(named, str) and len(set(named)) != len(named):
                raise ValueError(f"{key!r} names the same twice: {named}")
        return self

    @model_validator(mode="after")
    def _levels_are_pairs(self) -> Self:
        if self.levels is None:
            return self
        if isinstance(self.levels, dict) != (self.test == "interaction"):
            raise ValueError("'levels' is a pair [A, B] in a two-sample test, a table of pairs in an interaction")
        pairs = self.levels if isinstance(self.levels, dict) else {"levels": self.levels}
        for name, pair in pairs.items():
            if len(pair) != 2:
                raise ValueError(f"{name!r} names {len(pair)} levels, not two: {pair}")
            if len(set(pair)) != 2:
                raise ValueError(f"{name!r} names the same twice: {pair}")
        return self

    @model_validator(mode="after")
    def _files_fit(self) -> Self:
        of_design = {"design", "contrasts", "ftests"} & set(self.files)
        if self.files and ("ids" not in self.files or len(self.files) == 1):
            raise ValueError("'files' needs 'ids', the list of whose rows the other files hold, and these files")
        if of_design and (self.test != "design" or not {"design", "contrasts"} <= of_design):
            raise ValueError("'files' with a design belong to a test of kind design and need 'design' and 'contrasts'")
        if self.test == "design" and (self.weights is None) == (not of_design):
            raise ValueError("a design test needs either 'weights', with a formula, or 'files' with a design")
        if of_design and "formula" in self.model_fields_set:
            raise ValueError("'files' hold the whole design: there is no 'formula' beside them")
        for key, role in (("exchangeability_blocks", "blocks"), ("variance_groups", "variance_groups")):
            if role in self.files and key in self.model_fields_set:
                raise ValueError(f"give {key!r} as a column or in 'files', not both")
        return self
