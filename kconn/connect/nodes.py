"""Node sets as plain data, and the voxels that they have on a grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.errors import InputError, SchemaError
from kconn.grayordinates import Grayordinates, find_rows, short_name
from kconn.kernels import parcellation as kernel
from kconn.kernels.spheres import sphere_members

Array = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

#: Two affines describe one grid if no element differs by more than this, in mm.
AFFINE_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labels:
    """Nodes that are labels of an image.

    Parameters
    ----------
    volume
        Integer labels (i, j, k); 0 is no node.
    affine
        (4, 4) voxel to mm.
    keys
        (node,) the label of each node, ascending.
    resample
        Whether a run on another grid may be served by nearest-neighbour resampling.
    """

    volume: IntArray
    affine: Array
    keys: tuple[int, ...]
    resample: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spheres:
    """Nodes that are spheres.

    Parameters
    ----------
    centres
        (node, 3) in mm.
    radius_mm
        (node,) in mm.
    """

    centres: Array
    radius_mm: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseLabels:
    """Nodes that are labels of grayordinates.

    Parameters
    ----------
    places
        The grayordinates of the atlas.
    label
        (grayordinate,) integer labels; 0 is no node.
    keys
        (node,) the label of each node, ascending.
    """

    places: Grayordinates
    label: IntArray
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Nodes that are columns of a table of node series, found by their names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Union:
    """The nodes of several node sets, one set after the other.

    Parameters
    ----------
    parts
        Node sets of labels or spheres. A voxel may belong to nodes of several.
    """

    parts: tuple[NodeSet, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeSet:
    """Named nodes and what selects their voxels, for any run.

    Parameters
    ----------
    names
        (node,) unique names: the coordinate ``node``.
    networks
        (node,) the network of each node, empty where it has none, or None.
    centres
        (node, 3) mm, or None where nothing is known of it.
    source
        What selects the voxels.
    colours
        (node,) as ``#rrggbb``, or None where the atlas has none.
    hemispheres
        (node,) the hemisphere of each node, empty where it has none, or None.
    """

    names: tuple[str, ...]
    networks: tuple[str, ...] | None
    centres: Array | None
    source: Labels | Spheres | DenseLabels | Columns | Union
    colours: tuple[str, ...] | None = None
    hemispheres: tuple[str, ...] | None = None

    def coords(self) -> dict[str, tuple[str, npt.NDArray[Any]]]:
        """Return the coordinates of the dimension ``node``."""
        coords: dict[str, tuple[str, npt.NDArray[Any]]] = {"node": ("node", np.array(self.names))}
        of_node = {"network": self.networks, "hemisphere": self.hemispheres, "colour": self.colours}
        coords.update({name: ("node", np.array(of)) for name, of in of_node.items() if of is not None})
        if self.centres is not None:
            coords.update({axis: ("node", self.centres[:, i]) for i, axis in enumerate("xyz")})
        return coords


def nodes_from_labels(
    labels: npt.NDArray[Any],
    affine: npt.ArrayLike,
    *,
    names: Mapping[int, str] | None = None,
    networks: Mapping[int, str] | None = None,
    hemispheres: Mapping[int, str] | None = None,
    resample: bool = False,
) -> NodeSet:
    """Return the nodes of a label atlas.

    Parameters
    ----------
    labels
        Label image (i, j, k): whole numbers, 0 is no node.
    affine
        (4, 4) voxel to mm.
    names
        Label -> name, of exactly the labels in the image; the labels themselves if not given.
    networks, hemispheres
        Label -> network and hemisphere.
    resample
        Whether runs on another grid get the label nearest to each of their voxels. Without it they are refused.

    Raises
    ------
    InputError
        ``E-ATLAS`` if the image holds no labels or values that are none, or the tables do not fit it; ``E-NODES`` if
        two nodes share a name.
    """
    volume = _as_labels(labels)
    keys = tuple(int(key) for key in np.unique(volume) if key != 0)
    if not keys:
        raise InputError("E-ATLAS", "the label image holds no label", rule="at least one voxel is not 0")
    grid = np.asarray(affine, dtype=np.float64)
    for table, what in ((names, "names"), (networks, "networks"), (hemispheres, "hemispheres")):
        _check_table(table, keys, what)
    return NodeSet(
        names=_check_names(str(key) if names is None else names[key] for key in keys),
        networks=_in_order(networks, keys),
        hemispheres=_in_order(hemispheres, keys),
        centres=kernel.centres_of_mass(volume, grid, keys),
        source=Labels(volume=volume, affine=grid, keys=keys, resample=resample),
    )


def nodes_from_dense_labels(
    label: IntArray,
    places: Grayordinates,
    *,
    names: Mapping[int, str],
    networks: Mapping[int, str] | None = None,
    hemispheres: Mapping[int, str] | None = None,
    colours: Mapping[int, str] | None = None,
) -> NodeSet:
    """Return the nodes of a label atlas on grayordinates.

    Parameters
    ----------
    label
        (grayordinate,) integer labels; 0 is no node.
    places
        Where they lie.
    names
        Label -> name, of at least the labels that occur.
    networks, hemispheres
        Label -> network and hemisphere.
    colours
        Label -> ``#rrggbb``, of all labels or of none.

    Raises
    ------
    InputError
        ``E-ATLAS`` if there is no label or one has no name or network; ``E-NODES`` if two nodes share a name.
    """
    keys = tuple(int(key) for key in np.unique(label) if key != 0)
    if not keys:
        raise InputError("E-ATLAS", "the dlabel holds no label", rule="at least one grayordinate is not 0")
    for table, what in ((names, "names"), (networks, "networks"), (hemispheres, "hemispheres")):
        if table is not None and (unnamed := sorted(set(keys) - set(table))):
            raise InputError(
                "E-ATLAS",
                f"{what}: {len(unnamed)} labels of the dlabel are not in the table {unnamed[:5]}",
                rule="the table holds the labels that occur",
                fix="use the table that belongs to this dlabel",
            )
    return NodeSet(
        names=_check_names(names[key] for key in keys),
        networks=_in_order(networks, keys),
        hemispheres=_in_order(hemispheres, keys),
        centres=None,
        source=DenseLabels(places=places, label=label, keys=keys),
        colours=None if not colours or set(keys) - set(colours) else tuple(colours[key] for key in keys),
    )


def nodes_from_spheres(
    spheres: Iterable[tuple[str, float, float, float]],
    *,
    radius_mm: float | Sequence[float] | None = None,
    diameter_mm: float | Sequence[float] | None = None,
    networks: Mapping[str, str] | None = None,
) -> NodeSet:
    """Return nodes that are spheres: all voxels whose centre lies within the radius, as in nilearn.

    Parameters
    ----------
    spheres
        Name and centre (x, y, z) in mm of each.
    radius_mm, diameter_mm
        One of the two, for all spheres or one for each. Published studies state either.
    networks
        Name -> network.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if neither or both of ``radius_mm`` and ``diameter_mm`` are given, or one is not above zero.
    InputError
        ``E-NODES`` if there is no sphere, a centre is not finite, or two share a name.
    """
    if (radius_mm is None) == (diameter_mm is None):
        raise SchemaError(
            "E-ARGUMENT",
            f"radius_mm is {radius_mm} and diameter_mm is {diameter_mm}",
            rule="exactly one of them states the size of a sphere",
            fix="give radius_mm or diameter_mm, as the source of the coordinates defines it",
        )
    rows = list(spheres)
    names = _check_names(row[0] for row in rows)
    centres = np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(centres).all():
        bad = int(np.flatnonzero(~np.isfinite(centres).all(axis=1))[0])
        raise InputError("E-NODES", f"sphere {names[bad]!r} has centre {centres[bad].tolist()}", rule="x, y, z in mm")
    radius = np.asarray(radius_mm, np.float64) if diameter_mm is None else np.asarray(diameter_mm, np.float64) / 2
    if radius.size not in {1, len(names)} or not np.all(np.isfinite(radius) & (radius > 0)):
        raise SchemaError(
            "E-ARGUMENT",
            f"the radius is {radius.tolist()} mm for {len(names)} spheres",
            rule="one number above 0 for all, or one for each",
        )
    return NodeSet(
        names=names,
        networks=_in_order(networks, names),
        centres=centres,
        source=Spheres(centres=centres, radius_mm=np.broadcast_to(radius, len(names)).copy()),
    )


def nodes_from_columns(
    names: Iterable[str], *, exclude: Iterable[str] = (), networks: Mapping[str, str] | None = None
) -> NodeSet:
    """Return nodes that are columns of node series tables.

    Parameters
    ----------
    names
        Columns of the tables, in the order wanted.
    exclude
        Those of them that are no node (a global signal, the corpus callosum).
    networks
        Name -> network.

    Raises
    ------
    InputError
        ``E-NODES`` if nothing is left, two columns share a name, or ``exclude`` names no column.
    """
    columns, excluded = list(names), set(exclude)
    unknown = sorted(excluded - set(columns))
    if unknown:
        raise InputError(
            "E-NODES",
            f"no column is named {', '.join(map(repr, unknown))}",
            rule="every excluded column exists",
            fix=f"the columns are {', '.join(columns[:8])}{', ...' if len(columns) > 8 else ''}",
        )
    kept = _check_names(name for name in columns if name not in excluded)
    return NodeSet(
        names=kept,
        networks=_in_order(networks, kept),
        centres=None,
        source=Columns(),
    )


def join_nodes(*sets: NodeSet) -> NodeSet:
    """Return the nodes of several node sets as one.

    With `drop_nodes`, spheres can give way to whole structures: ``join_nodes(drop_nodes(spheres, names), structures)``.

    Parameters
    ----------
    sets
        All of labels and spheres, or all of columns.

    Raises
    ------
    InputError
        ``E-NODES`` if two nodes share a name, or columns are mixed with voxels.
    """
    names = _check_names(name for part in sets for name in part.names)
    of_columns = [isinstance(part.source, Columns) for part in sets]
    if any(of_columns) and not all(of_columns):
        raise InputError(
            "E-NODES", "columns of a table are joined with labels or spheres", rule="all nodes come from one run"
        )
    centres = [part.centres for part in sets]
    return NodeSet(
        names=names,
        networks=_joined(sets, [part.networks for part in sets]),
        hemispheres=_joined(sets, [part.hemispheres for part in sets]),
        centres=None
        if any(part is None for part in centres)
        else np.concatenate([part for part in centres if part is not None]),
        source=Columns() if all(of_columns) else Union(parts=sets),
    )


def _joined(sets: Sequence[NodeSet], given: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Return what several node sets say of their nodes, empty for those that say nothing; None if none does."""
    if all(part is None for part in given):
        return None
    return tuple(name for nodes, part in zip(sets, given, strict=True) for name in part or ("",) * len(nodes.names))


def label_nodes(
    nodes: NodeSet,
    *,
    networks: Mapping[str, str] | None,
    hemispheres: Mapping[str, str] | None,
    known: Iterable[str] = (),
) -> NodeSet:
    """Return a node set with networks and hemispheres by name of node; None leaves what the nodes have.

    Parameters
    ----------
    nodes
        The node set.
    networks, hemispheres
        Node -> network and hemisphere, of every node.
    known
        Names that may be in the tables beside those of the nodes.

    Raises
    ------
    InputError
        ``E-ATLAS`` if a table lacks a node, or names what is none.
    """
    for table, what in ((networks, "networks"), (hemispheres, "hemispheres")):
        if table is None:
            continue
        lacking = [name for name in nodes.names if name not in table]
        strangers = [name for name in table if name not in {*nodes.names, *known}]
        if lacking or strangers:
            raise InputError(
                "E-ATLAS",
                f"{what}: {len(lacking)} nodes are not in the table {lacking[:5]}, "
                f"{len(strangers)} rows are of no node {strangers[:5]}",
                rule="the table has a row for every node, by its name",
                fix="use the table that belongs to these nodes",
            )
    own = {"networks": _in_order(networks, nodes.names), "hemispheres": _in_order(hemispheres, nodes.names)}
    return replace(
        nodes,
        networks=nodes.networks if own["networks"] is None else own["networks"],
        hemispheres=nodes.hemispheres if own["hemispheres"] is None else own["hemispheres"],
    )


def drop_nodes(nodes: NodeSet, names: Iterable[str]) -> NodeSet:
    """Return a node set without the nodes named.

    Raises
    ------
    InputError
        ``E-NODES`` if a name is no node, or none is left.
    """
    unwanted = set(names)
    if absent := sorted(unwanted - set(nodes.names)):
        raise InputError("E-NODES", f"there is no node {absent[0]!r} to drop", rule="nodes to drop exist")
    return _pick(nodes, np.array([name not in unwanted for name in nodes.names]))


def _pick(nodes: NodeSet, keep: BoolArray) -> NodeSet:
    at = np.flatnonzero(keep)
    source = nodes.source
    match source:
        case Labels() | DenseLabels():
            source = replace(source, keys=tuple(source.keys[i] for i in at))
        case Spheres():
            source = Spheres(centres=source.centres[at], radius_mm=source.radius_mm[at])
        case Union(parts=parts):
            cuts = np.cumsum([len(part.names) for part in parts])[:-1]
            chosen = [(part, mine) for part, mine in zip(parts, np.split(keep, cuts), strict=True) if mine.any()]
            source = Union(parts=tuple(_pick(part, mine) for part, mine in chosen))
        case Columns():
            pass
    return NodeSet(
        names=_check_names(nodes.names[i] for i in at),
        networks=_in_order(nodes.networks, at),
        hemispheres=_in_order(nodes.hemispheres, at),
        centres=None if nodes.centres is None else nodes.centres[at],
        source=source,
        colours=_in_order(nodes.colours, at),
    )


def find_members(nodes: NodeSet, shape: tuple[int, int, int], affine: Array, *, where: str = "") -> kernel.Members:
    """Return the voxels of every node on a grid.

    Parameters
    ----------
    nodes
        Labels or spheres.
    shape, affine
        The grid.
    where
        The run, for error messages.

    Raises
    ------
    InputError
        ``E-GRID`` or ``E-NODES``, as in `parcellate`.
    """
    members = _find(nodes.source, shape, affine, where)
    if members.voxel.size == 0:
        raise InputError(
            "E-NODES",
            f"none of the {len(nodes.names)} nodes lies within the {_describe(shape, affine)}",
            where=where,
            rule="at least one node overlaps the run",
            fix="check that atlas and run are in the same space",
        )
    return members


def find_dense_members(nodes: NodeSet, places: Grayordinates, *, where: str = "") -> kernel.Members:
    """Return the rows that every node has among the grayordinates of a run.

    The voxels of a node, as `Members` counts them, are its grayordinates in the atlas.

    Parameters
    ----------
    nodes
        Dense labels, or a union of such.
    places
        The grayordinates of the run.
    where
        The run, for error messages.

    Raises
    ------
    InputError
        ``E-BRAIN-MODELS`` if atlas and run have other surfaces or another volume, or the run lacks a structure in
        which the atlas has nodes; ``E-NODES`` if the nodes are voxels of a volume.
    """
    match nodes.source:
        case DenseLabels():
            return _find_dense(nodes.source, places, where)
        case Union(parts=parts):
            return kernel.merge_members([find_dense_members(part, places, where=where) for part in parts])
        case Labels() | Spheres():
            raise InputError(
                "E-NODES",
                "the nodes are labels of a volume or spheres, the run has grayordinates",
                where=where,
                rule="nodes of a CIFTI run are labels of grayordinates: a sphere around a point of the volume says "
                "nothing of the cortical surface",
                fix="give a dlabel as the atlas",
            )
        case Columns():
            raise SchemaError("E-ARGUMENT", "a node set of columns has no grayordinates", where=where)


def _find_dense(source: DenseLabels, places: Grayordinates, where: str) -> kernel.Members:
    atlas = source.places
    rows = find_rows(atlas, places, where=where)
    node = np.searchsorted(source.keys, source.label)
    has_node = np.asarray(source.keys)[np.minimum(node, len(source.keys) - 1)] == source.label
    in_run = has_node & (rows >= 0)
    used, there = (np.unique(atlas.structure[rows_of]) for rows_of in (has_node, in_run))
    if absent := [short_name(atlas.structures[i]) for i in used if i not in there]:
        raise InputError(
            "E-BRAIN-MODELS",
            f"the atlas has nodes in {', '.join(absent)}, where the run has no grayordinate; it has "
            f"{places.describe()}",
            where=where,
            rule="a run covers every structure in which the atlas has nodes",
            fix="give an atlas of the structures that the run has",
        )
    n_voxel = np.bincount(node[has_node], minlength=len(source.keys))
    return kernel.join_members(rows[in_run], node[in_run], n_voxel=n_voxel)


def _find(
    source: Labels | Spheres | DenseLabels | Columns | Union, shape: tuple[int, int, int], affine: Array, where: str
) -> kernel.Members:
    match source:
        case Spheres(centres=centres, radius_mm=radius_mm):
            return sphere_members(centres, radius_mm, affine, shape)
        case Labels():
            return _find_labels(source, shape, affine, where)
        case Union(parts=parts):
            return kernel.merge_members([_find(part.source, shape, affine, where) for part in parts])
        case DenseLabels():
            raise InputError(
                "E-NODES",
                "the nodes are labels of grayordinates, the run has voxels of a volume",
                where=where,
                rule="a dlabel goes with CIFTI runs",
                fix="give a label image as the atlas, or the CIFTI files of the runs",
            )
        case Columns():
            raise SchemaError("E-ARGUMENT", "a node set of columns has no voxels", where=where)


def _find_labels(source: Labels, shape: tuple[int, int, int], affine: Array, where: str) -> kernel.Members:
    same = source.volume.shape == shape and np.abs(source.affine - affine).max() <= AFFINE_TOLERANCE
    if same:
        return kernel.label_members(source.volume, keys=source.keys)
    if not source.resample:
        raise InputError(
            "E-GRID",
            f"the atlas is on a {_describe(source.volume.shape, source.affine)}, the run on a "
            f"{_describe(shape, affine)}",
            where=where,
            rule=f"shape equal and affine equal to {AFFINE_TOLERANCE:g} mm",
            fix="ask for resample = true (nearest neighbour), or give the atlas on the grid of the run",
        )
    labels = kernel.resample_labels(source.volume, source.affine, affine, shape)
    wide_affine, wide_shape, inside = kernel.extended_grid(source.volume, source.affine, affine, shape)
    beyond = kernel.resample_labels(source.volume, source.affine, wide_affine, wide_shape)
    beyond[inside] = 0
    n_beyond = kernel.label_members(beyond, keys=source.keys).n_voxel
    return kernel.label_members(labels, keys=source.keys, n_beyond=n_beyond)


def _as_labels(labels: npt.NDArray[Any]) -> IntArray:
    if labels.ndim != 3:
        raise InputError("E-ATLAS", f"the label image has shape {labels.shape}", rule="it has three dimensions")
    if labels.dtype.kind in "iu":
        return labels
    whole = np.rint(labels) if labels.dtype.kind == "f" else np.zeros(1)
    if labels.dtype.kind != "f" or not np.array_equal(whole, labels):
        raise InputError(
            "E-ATLAS",
            f"the image of type {labels.dtype} holds values that are no label",
            rule="labels are whole numbers",
            fix="give a label image, not a probability map",
        )
    return whole.astype(np.int32)


def _check_table(table: Mapping[int, str] | None, keys: Sequence[int], what: str) -> None:
    if table is None:
        return
    unnamed = sorted(set(keys) - set(table))
    unused = sorted(set(table) - set(keys) - {0})
    if unnamed or unused:
        raise InputError(
            "E-ATLAS",
            f"{what}: {len(unnamed)} labels of the image are not in the table {unnamed[:5]}, "
            f"{len(unused)} of the table are not in the image {unused[:5]}",
            rule="the table holds exactly the labels of the image",
            fix="use the table that belongs to this image",
        )


def _in_order(table: Any, keys: Iterable[Any]) -> tuple[str, ...] | None:
    """Return what a table or tuple says of each key, or None where there is none."""
    return None if table is None else tuple(table[key] for key in keys)


def _check_names(names: Iterable[str]) -> tuple[str, ...]:
    out = tuple(str(name) for name in names)
    if not out:
        raise InputError("E-NODES", "the node set is empty", rule="at least one node")
    twice = sorted({name for name in out if out.count(name) > 1}) if len(set(out)) < len(out) else []
    if twice:
        raise InputError("E-NODES", f"several nodes are named {twice[0]!r}", rule="names are unique")
    return out


def _describe(shape: Sequence[int], affine: Array) -> str:
    """Describe a grid as a reader knows it: shape, voxel size, orientation, origin."""
    size = " x ".join(f"{edge:.4g}" for edge in np.linalg.norm(affine[:3, :3], axis=0))
    main = np.abs(affine[:3, :3]).argmax(axis=0)
    axes = "".join(("LR", "PA", "IS")[m][int(affine[m, i] > 0)] for i, m in enumerate(main))
    origin = ", ".join(f"{x:.4g}" for x in affine[:3, 3])
    return f"grid of {' x '.join(map(str, shape))} voxels of {size} mm, {axes}, origin ({origin})"
