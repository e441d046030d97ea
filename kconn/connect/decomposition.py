"""Group decomposition: runs reduced, merged two and two, and turned into independent spatial components."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Final, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.clean.frames import place, sample_mask, voxel_signal
from kconn.connect.voxels import PLACE_ATTRS, check_same_grid, voxel_key
from kconn.errors import InputError, SchemaError
from kconn.kernels import group_pca as kernel
from kconn.kernels import ica
from kconn.kernels.blas import single_thread
from kconn.kernels.dual_regression import find_voxels_with_data

Array = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
Normalise = Literal["residual", "sd", "none"]

#: Strongest components of a run that do not count as its noise, as in HCP's MIGP; never more than a quarter of all.
N_STRUCTURED: Final = 30


def reduce_run(ds: xr.Dataset, *, n_component: int | None, normalise: Normalise = "residual") -> xr.Dataset:
    """Reduce a run to its strongest components: rows that stand for its frames.

    Parameters
    ----------
    ds
        A run with ``denoised``, else ``bold``: (voxel, time). Lazy input gives a lazy result, but for the products of
        frames, which are computed at once.
    n_component
        Rows to keep, or None for all: then nothing is lost.
    normalise
        What each voxel is divided by first: ``"residual"``, its sd without the 30 strongest components (variance
        normalisation of MELODIC and HCP's MIGP), ``"sd"``, its sd, or ``"none"``.

    Returns
    -------
    xr.Dataset
        ``reduced (component, voxel)``, whose product with itself over components is that of the normalised run over
        frames, as far as the components kept go; ``eigenvalue (component)``; ``n_run (voxel)``, 1 where the run has
        data; ``n_dimension``, how many components stand out of white noise; the coordinates of the voxels and the
        grid. Float32, or float64 if nothing is to be lost.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` if the run has no voxels; ``E-ARGUMENT``.
    InputError
        ``E-NO-FRAMES`` if fewer frames are kept than the normalisation needs.

    References
    ----------
    Smith et al. 2014, Group-PCA for very large fMRI datasets, doi:10.1016/j.neuroimage.2014.07.051; Beckmann and
    Smith 2004, doi:10.1109/TMI.2003.822821.
    """
    signal = voxel_signal(ds, what="a decomposition")
    if normalise not in ("residual", "sd", "none") or (n_component is not None and n_component < 1):
        raise SchemaError(
            "E-ARGUMENT",
            f"n_component={n_component!r}, normalise={normalise!r}",
            where=place(ds),
            rule="n_component is at least 1 or None, normalise is 'residual', 'sd' or 'none'",
        )
    kept = sample_mask(ds).to_numpy()
    if kept.sum() < 3:
        raise InputError(
            "E-NO-FRAMES",
            f"{int(kept.sum())} frames are left",
            where=place(ds),
            rule="a decomposition needs at least 3",
            fix="relax the censoring threshold or leave the run out",
        )
    x = ds[signal].transpose("voxel", "time")
    width = plan_voxel_blocks(*x.shape)
    x = x.chunk({"voxel": width, "time": -1})
    blocks = x.data.to_delayed()[:, 0]
    noise = None if normalise == "none" else _find_noise(blocks, kept, normalise)
    gram = _sum([delayed(_product)(block, kept, noise) for block in blocks])
    values, vectors = _eigen(gram, n_component)
    dtype = np.dtype(np.float64 if n_component is None else np.float32)
    rows = [delayed(_project_run)(block, kept, noise, vectors, dtype) for block in blocks]
    reduced = _join(rows, x.chunks[0] if x.chunks else (), values.size, dtype)
    there = [delayed(_has_data)(block, kept) for block in blocks]
    n_voxel = x.sizes["voxel"]
    n_run = da.concatenate(
        [
            da.from_delayed(one, (n,), dtype=np.int64)
            for one, n in zip(there, x.chunks[0] if x.chunks else (), strict=True)
        ]
    )
    out = xr.Dataset(
        {
            "reduced": (("component", "voxel"), reduced),
            "eigenvalue": ("component", values),
            "n_run": ("voxel", n_run.rechunk(n_voxel)),
            "n_dimension": _dimension(gram, n_voxel),
        },
        coords={name: coord for name, coord in ds.coords.items() if coord.dims == ("voxel",)},
        attrs={name: ds.attrs[name] for name in PLACE_ATTRS if name in ds.attrs},
    )
    return schema.annotate(out.assign_attrs(normalise=normalise, n_frame=int(kept.sum())))


def merge_reduced(parts: Sequence[xr.Dataset], *, n_component: int | None) -> xr.Dataset:
    """Merge reduced runs, or groups of them, into one of the same form.

    Voxels are joined by their place; where a part has none, it adds nothing, and ``n_run`` counts who has. Only
    the subspace has a meaning: the rows are its principal axes over all runs below.

    Parameters
    ----------
    parts
        What `reduce_run` or this returned.
    n_component
        Rows to keep, or None for all.

    Raises
    ------
    InputError
        ``E-GRID`` if the parts lie on different grids.
    """
    check_same_grid(parts)
    keys = [voxel_key(part) for part in parts]
    union = reduce(np.union1d, keys)
    owner = {name: np.empty(union.size, dtype=np.int64) for name in ("part", "at")}
    for i, key in enumerate(keys):
        at = np.searchsorted(union, key)
        owner["part"][at], owner["at"][at] = i, np.arange(key.size)
    n_row = sum(part.sizes["component"] for part in parts)
    width = plan_voxel_blocks(union.size, n_row)
    starts = range(0, union.size, width)
    sizes = tuple(min(width, union.size - start) for start in starts)
    stacks = [_stack(parts, keys, union[start : start + width]) for start in starts]
    values, vectors = _leading([delayed(_product_of_rows)(stack) for stack in stacks], n_component)
    dtype = np.dtype(np.float64 if n_component is None else np.float32)
    reduced = _join([delayed(_project_rows)(stack, vectors, dtype) for stack in stacks], sizes, values.size, dtype)
    n_run = np.zeros(union.size, dtype=np.int64)
    for part, key in zip(parts, keys, strict=True):
        n_run[np.searchsorted(union, key)] += part["n_run"].to_numpy()
    coords = {
        str(name): ("voxel", _gather([part[name].to_numpy() for part in parts], owner))
        for name, coord in parts[0].coords.items()
        if coord.dims == ("voxel",)
    }
    dimensions = np.concatenate([np.atleast_1d(part["n_dimension"].to_numpy()) for part in parts])
    out = xr.Dataset(
        {
            "reduced": (("component", "voxel"), reduced),
            "eigenvalue": ("component", values),
            "n_run": ("voxel", n_run),
            "n_dimension": ("run", dimensions),
        },
        coords=coords,
        attrs={name: value for name, value in parts[0].attrs.items() if name != "n_frame"},
    )
    return schema.annotate(out.assign_attrs(n_frame=sum(int(part.attrs["n_frame"]) for part in parts)))


def find_components(
    ds: xr.Dataset, *, n_component: int | None, n_start: int = 10, seed: int = 0, min_share: float = 1.0
) -> xr.Dataset:
    """Return the independent spatial components of a group.

    Parameters
    ----------
    ds
        What `merge_reduced` returned for all runs, or `reduce_run` for one.
    n_component
        Components, or None for the median over runs of how many stand out of white noise (``n_dimension``; smooth
        images have more than that of white noise, so take it as an upper bound).
    n_start, seed
        Starts of FastICA, and the seed of them.
    min_share
        Voxels that fewer of the runs have are left out: a share between 0 and 1.

    Returns
    -------
    xr.Dataset
        ``ica_map (node, voxel)``, z over voxels, the longer tail positive; ``stability (node)``; ``variance_share
        (node)`` of the whole that each explains; nodes named ``ic001`` on, most variance first. Attrs ``n_start``,
        ``n_converged``, ``seed``, ``n_run``.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT``.
    InputError
        ``E-NODES`` if there are fewer rows than components; ``E-ICA-CONVERGENCE``.

    References
    ----------
    Hyvarinen 1999, doi:10.1109/72.761722; Himberg et al. 2004, doi:10.1016/j.neuroimage.2004.03.027.
    """
    schema.validate(ds, "reduced", "n_run", "n_dimension")
    n_run = ds["n_run"].to_numpy()
    inside = np.flatnonzero((n_run > 0) & (n_run >= min_share * n_run.max()))
    wanted = round(float(np.median(ds["n_dimension"].to_numpy()))) if n_component is None else n_component
    if n_start < 1 or wanted < 1 or not 0 <= min_share <= 1:
        raise SchemaError(
            "E-ARGUMENT",
            f"n_component={wanted}, n_start={n_start}, min_share={min_share}",
            rule="at least one component and one start, a share between 0 and 1",
        )
    n_row = ds.sizes["component"]
    if wanted > n_row:
        raise InputError(
            "E-NODES",
            f"{wanted} components of {n_row} rows",
            rule="runs are reduced to no fewer rows than there are components",
            fix="ask for fewer components, or keep more rows",
        )
    width = plan_voxel_blocks(inside.size, n_row)
    blocks = [ds["reduced"].data[:, inside[start : start + width]] for start in range(0, inside.size, width)]
    gram = _sum([delayed(_product_of_rows)(block) for block in blocks])
    values, vectors = _eigen(gram, wanted)
    if values.size < wanted:
        raise InputError(
            "E-NODES",
            f"{wanted} components of data that has {values.size} dimensions",
            rule="no more components than dimensions",
            fix="ask for fewer components",
        )
    sizes = [block.shape[1] for block in blocks]
    projected = [delayed(_project_rows)(block, vectors, np.dtype(np.float64)) for block in blocks]
    rows = _join(projected, sizes, wanted, np.dtype(np.float64)).compute()
    with single_thread():
        found = ica.find_sources(rows, n_start=n_start, seed=seed)
    names = [f"ic{i + 1:03d}" for i in range(len(found.sources))]
    out = xr.Dataset(
        {
            "ica_map": (("node", "voxel"), found.sources.astype(np.float32)),
            "stability": ("node", found.stability),
            "variance_share": ("node", (found.mixing**2).sum(axis=0) * inside.size / np.trace(gram)),
        },
        coords={
            "node": ("node", np.array(names, dtype=object)),
            **{name: coord[inside] for name, coord in ds.coords.items() if coord.dims == ("voxel",)},
        },
        attrs={name: ds.attrs[name] for name in (*PLACE_ATTRS, "normalise") if name in ds.attrs},
    )
    facts = {"n_start": n_start, "n_converged": found.n_converged, "seed": seed, "n_run": int(n_run.max())}
    return schema.annotate(out.assign_attrs(facts))


def match_templates(ds: xr.Dataset, templates: xr.DataArray) -> xr.Dataset:
    """Add the spatial correlation of each component with each template, over the voxels finite in both.

    Parameters
    ----------
    ds
        With ``ica_map (node, voxel)``.
    templates
        (template, voxel) on the same voxels, with the coordinate ``template``.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``template_correlation (node, template)``.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if the templates have other voxels.
    """
    schema.validate(ds, "ica_map")
    if templates.dims != ("template", "voxel") or templates.sizes["voxel"] != ds.sizes["voxel"]:
        raise SchemaError(
            "E-ARGUMENT",
            f"the templates have dims {dict(templates.sizes)}, the components {ds.sizes['voxel']} voxels",
            rule="templates are (template, voxel) on the voxels of the components",
        )
    with single_thread():
        r = ica.match_templates(ds["ica_map"].to_numpy().astype(np.float64), templates.to_numpy().astype(np.float64))
    out = ds.assign_coords(template=templates["template"].variable)
    return schema.annotate(out.assign(template_correlation=(("node", "template"), r)))


def _find_noise(blocks: Sequence[Any], kept: BoolArray, normalise: Normalise) -> Array:
    """Return orthonormal courses (time, component) that span what counts as the noise of a run.

    Denoising has taken dimensions from the frames, so that a run has fewer than it has frames.
    """
    _, vectors = _leading([delayed(_product)(block, kept, None) for block in blocks], None)
    n_structured = min(N_STRUCTURED, vectors.shape[1] // 4) if normalise == "residual" else 0
    return vectors[:, n_structured:]


def _product(block: npt.NDArray[Any], kept: BoolArray, noise: Array | None) -> Array:
    """Return the products of frames (time, time) over one block of voxels."""
    with single_thread():
        x = _normalised(block, kept, noise)
        return x.T @ x


def _normalised(block: npt.NDArray[Any], kept: BoolArray, noise: Array | None) -> Array:
    x = kernel.centre_frames(block, kept=kept)
    return x if noise is None else kernel.divide_by(x, kernel.sd_within(x, noise))


def _project_run(
    block: npt.NDArray[Any],
    kept: BoolArray,
    noise: Array | None,
    vectors: Array,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    with single_thread():
        return (_normalised(block, kept, noise) @ vectors).T.astype(dtype)


def _has_data(block: npt.NDArray[Any], kept: BoolArray) -> npt.NDArray[np.int64]:
    return find_voxels_with_data(block, kept=kept).astype(np.int64)


def _product_of_rows(stack: npt.NDArray[Any]) -> Array:
    rows = stack.astype(np.float64, copy=False)
    with single_thread():
        product: Array = rows @ rows.T
    return product


def _project_rows(stack: Array, vectors: Array, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    with single_thread():
        rows: npt.NDArray[Any] = (vectors.T @ stack).astype(dtype)
    return rows


def _sum(parts: Sequence[Any]) -> Array:
    """Add the parts of all blocks in their order, one after the other, so that the bits are those of one block list."""
    total = reduce(delayed(np.add), parts)
    summed: Array = np.asarray(total.compute())
    return summed


def _eigen(gram: Array, n_component: int | None) -> tuple[Array, Array]:
    with single_thread():
        return kernel.leading_components(gram, n_component)


def _leading(parts: Sequence[Any], n_component: int | None) -> tuple[Array, Array]:
    return _eigen(_sum(parts), n_component)


def _dimension(gram: Array, n_sample: int) -> int:
    values, _ = _eigen(gram, None)
    return kernel.estimate_dimension(values, n_sample=n_sample)


def _join(blocks: Sequence[Any], sizes: Sequence[int], n_row: int, dtype: np.dtype[Any]) -> da.Array:
    joined: da.Array = da.concatenate(
        [da.from_delayed(block, (n_row, n), dtype=dtype) for block, n in zip(blocks, sizes, strict=True)], axis=1
    )
    return joined


def _stack(parts: Sequence[xr.Dataset], keys: Sequence[npt.NDArray[np.int64]], wanted: npt.NDArray[np.int64]) -> Any:
    """Return a task that stacks the rows of all parts at the wanted voxels, 0 where a part has none."""
    pieces, places = [], []
    for part, key in zip(parts, keys, strict=True):
        first, last = np.searchsorted(key, [wanted[0], wanted[-1] + 1])
        pieces.append(part["reduced"].data[:, first:last])
        places.append(np.searchsorted(wanted, key[first:last]))
    return delayed(_place_rows)(pieces, places, wanted.size)


def _place_rows(pieces: Sequence[npt.NDArray[Any]], places: Sequence[npt.NDArray[np.intp]], n_voxel: int) -> Array:
    stack = np.zeros((sum(len(piece) for piece in pieces), n_voxel))
    first = 0
    for piece, at in zip(pieces, places, strict=True):
        stack[first : first + len(piece), at] = piece
        first += len(piece)
    return stack


def _gather(values: Sequence[npt.NDArray[Any]], owner: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[Any]:
    gathered = np.empty(owner["part"].size, dtype=values[0].dtype)
    for i, value in enumerate(values):
        mine = owner["part"] == i
        gathered[mine] = value[owner["at"][mine]]
    return gathered
