"""``[families] [blocks] [visits] [reliability]``: named edges, means over them, and how alike sessions and runs are."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kconn.study.connection_tables import KindName
from kconn.study.table import Cell, Table

#: Two names whose edges between each other belong to a family: nodes, networks or hemispheres.
Ends = Annotated[list[str], Field(min_length=2, max_length=2)]


class FamiliesTable(Table):
    """``[families]``: named sets of edges, for contrasts and blocks."""

    file: Annotated[
        str | None, Field(description="table with the columns family, first and second, relative to this file")
    ] = None
    edges: Annotated[
        dict[str, Annotated[list[Ends], Field(min_length=1)]],
        Field(
            description='family -> pairs of names: { sgACC-DMN = [["sgACC", "DMN"]] }; a pair of one name: within it'
        ),
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_families(self) -> Self:
        if self.file is None and not self.edges:
            raise ValueError("[families] names a file, or edges, or both")
        return self


class BlocksTable(Table):
    """``[blocks]``: the mean connection within and between networks and of families, per session."""

    networks: Annotated[
        Literal["all", "none"] | list[str],
        Field(description="networks whose edges are averaged, within each and between each two"),
    ] = "all"
    families: Annotated[
        Literal["all", "none"] | list[str], Field(description="families of [families] whose edges are averaged")
    ] = "all"
    kinds: Annotated[
        list[KindName] | None, Field(min_length=1, description="kinds of netmat that are averaged; all without it")
    ] = None


class VisitTable(Table):
    """``[visits.NAME]``: several sessions that stand for one, such as two baselines."""

    sessions: Annotated[
        list[str], Field(min_length=2, description="sessions whose mean it is: of each subject those that it has")
    ]


class ReliabilityTable(Table):
    """``[reliability.NAME]``: the intraclass correlation of every edge between sessions, or between runs."""

    sessions: Annotated[list[str] | None, Field(min_length=2, description="sessions that are compared")] = None
    runs: Annotated[list[str] | None, Field(min_length=2, description="runs of a session that are compared")] = None
    session: Annotated[str | None, Field(description="whose runs they are, where there are several sessions")] = None
    icc: Annotated[
        Literal["ICC(1,1)", "ICC(2,1)", "ICC(3,1)"],
        Field(description="one-way; two-way, absolute agreement; two-way, consistency"),
    ] = "ICC(2,1)"
    kinds: Annotated[
        list[KindName] | None, Field(min_length=1, description="kinds of netmat that are compared; all without it")
    ] = None
    where: Annotated[
        dict[str, Cell | list[Cell]], Field(description="subjects whose column has this value, or one of these")
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _compares_one_thing(self) -> Self:
        if (self.sessions is None) == (self.runs is None):
            raise ValueError("give either 'sessions' or 'runs', two or more that are compared")
        if self.session is not None and self.runs is None:
            raise ValueError("'session' belongs to 'runs'")
        named = self.sessions or self.runs or []
        if len(set(named)) < len(named):
            raise ValueError(f"the same is named twice: {named}")
        return self
