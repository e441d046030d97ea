"""The families of edges of a study, and which node sets they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import xarray as xr

from kconn.connect.families import select_families
from kconn.connect.netmats import NODE_LABELS, edge_coords
from kconn.errors import InputError, StudyFileError
from kconn.io.families import read_families
from kconn.study.file import Study

#: Pairs of names, the edges between which make a family.
Pairs = list[tuple[str, str]]


def list_families(study: Study) -> dict[str, Pairs]:
    """Return the families of ``[families]``, those of its file first.

    Raises
    ------
    InputError
        As `kconn.io.families.read_families`.
    StudyFileError
        ``E-STUDY-VALUE`` if one is in the file and in the study file.
    """
    table = study.families
    if table is None:
        return {}
    found: dict[str, Pairs] = {} if table.file is None else read_families(study.folder / table.file)
    if twice := sorted(set(found) & set(table.edges)):
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"the family {twice[0]!r} is in families.file and in families.edges",
            rule="a family is defined once",
            fix="rename one of them",
        )
    return found | {name: [(first, second) for first, second in pairs] for name, pairs in table.edges.items()}


def pick_family(study: Study, families: Mapping[str, Pairs], contrast: str) -> Pairs | None:
    """Return the family that a contrast is restricted to, or None where it is not.

    Raises
    ------
    StudyFileError
        ``E-STUDY-VALUE`` if there is none of its name.
    """
    name = study.contrasts[contrast].family
    if name is None:
        return None
    if name not in families:
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"contrasts.{contrast}: there is no family {name!r}",
            rule="a family is defined in [families]",
            fix=f"the families are {', '.join(families) or 'none: add a table [families]'}",
        )
    return families[name]


def nodes_with_netmats(study: Study, coords: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Return the coordinates of the node sets whose netmats are estimated."""
    return {
        name: coords[name]
        for name, table in study.nodes.items()
        if table.netmats and name in coords and coords[name].sizes["node"] > 0
    }


def choose_node_sets(family: str, pairs: Pairs, sets: Mapping[str, xr.Dataset]) -> list[str]:
    """Return the node sets that a family belongs to: those that know every name of it.

    Parameters
    ----------
    family
        Its name, for messages.
    pairs
        Its pairs of names.
    sets
        Node set -> coordinates ``node``, and ``network`` and ``hemisphere`` where they are known.

    Raises
    ------
    InputError
        ``E-NODES`` if no node set knows its names, one knows only some of them, or the family has no edge.
    """
    wanted = {name for pair in pairs for name in pair}
    known = {name: wanted & _names(coords) for name, coords in sets.items()}
    chosen = [name for name, found in known.items() if found]
    for name in chosen or list(sets)[:1]:
        if lacking := sorted(wanted - known[name]):
            raise InputError(
                "E-NODES",
                f"family {family!r}: {', '.join(map(repr, lacking[:5]))} is no node, network or hemisphere of "
                f"nodes.{name}",
                rule="a family is defined by names that its node set has",
                fix=f"its nodes are {', '.join(map(str, sets[name]['node'].to_numpy()[:3]))}, ...; networks come from "
                "a label table",
            )
        select_families(_edges(sets[name]), [(family, *pair) for pair in pairs])
    return chosen


def plan_blocks(
    study: Study, families: Mapping[str, Pairs], sets: Mapping[str, xr.Dataset]
) -> dict[str, dict[str, Pairs]]:
    """Return node set -> block -> its pairs of names, as ``[blocks]`` asks for them.

    The block within a network has its name, that between two both of their names.

    Raises
    ------
    InputError
        ``E-NODES`` if there is no block, a network is not there, or a block and a family share a name.
    StudyFileError
        ``E-STUDY-VALUE`` if a family that is named is not there.
    """
    table = study.blocks
    if table is None:
        return {}
    asked = {"all": list(families), "none": []}.get(str(table.families), table.families)
    if unknown := [name for name in asked if name not in families]:
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"blocks.families names {unknown[0]!r}",
            rule="families are defined in [families]",
            fix=f"the families are {', '.join(families) or 'none: add a table [families]'}",
        )
    chosen = {family: choose_node_sets(family, families[family], sets) for family in asked}
    blocks: dict[str, dict[str, Pairs]] = {}
    for name, networks in _networks(table.networks, sets).items():
        blocks[name] = _between(networks, sets[name])
        rows = [(block, *pair) for block, pairs in blocks[name].items() for pair in pairs]
        if rows:  # a name that is a node as well is refused
            select_families(_edges(sets[name]), rows)
    for family, names in chosen.items():
        for name in names:
            if family in blocks.setdefault(name, {}):
                raise InputError(
                    "E-NODES",
                    f"{family!r} is both a family and the block within a network, or between two",
                    rule="each block has a name of its own",
                    fix="rename the family, or write networks = 'none' in [blocks]",
                )
            blocks[name][family] = families[family]
    found = {name: mine for name, mine in blocks.items() if mine}
    if not found:
        raise InputError(
            "E-NODES",
            "[blocks] has no block",
            rule="nodes have networks, or there are families",
            fix="give a node set a label table with networks, or add [families]",
        )
    return found


def _networks(asked: str | list[str], sets: Mapping[str, xr.Dataset]) -> dict[str, list[str]]:
    """Return node set -> its networks that are asked for, in the order of its nodes or of the list."""
    if asked == "none":
        return {}
    known = {
        name: [network for network in dict.fromkeys(map(str, coords["network"].to_numpy())) if network]
        for name, coords in sets.items()
        if "network" in coords
    }
    if isinstance(asked, str):
        return known
    found = {name: list(asked) for name, networks in known.items() if set(asked) & set(networks)}
    for name in found or dict.fromkeys(list(sets)[:1]):
        if lacking := [network for network in asked if network not in known.get(name, [])]:
            raise InputError(
                "E-NODES",
                f"blocks.networks: nodes.{name} has no network {lacking[0]!r}",
                rule="networks are those of the label table",
                fix=f"its networks are {', '.join(known.get(name, [])) or 'not known'}",
            )
    return found


def _between(networks: Iterable[str], coords: xr.Dataset) -> dict[str, Pairs]:
    """Return the blocks within and between networks that have an edge: one node alone has none within."""
    size = {str(network): int(n) for network, n in zip(*np.unique(coords["network"], return_counts=True), strict=True)}
    pairs = combinations_with_replacement(networks, 2)
    return {a if a == b else f"{a}-{b}": [(a, b)] for a, b in pairs if a != b or size[a] > 1}


def _names(coords: xr.Dataset) -> set[str]:
    return {str(name) for label in NODE_LABELS if label in coords for name in coords[label].to_numpy()} - {""}


def _edges(coords: xr.Dataset) -> xr.Dataset:
    """Return a Dataset of the edges of a node set, of zeros."""
    ends: dict[str, Any] = edge_coords(coords)
    return xr.Dataset({"netmat": ("edge", np.zeros(ends["node_i"].size))}, coords=ends)
