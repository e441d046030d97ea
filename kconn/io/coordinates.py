"""Published tables of spheres, by name: those that nilearn carries, read when asked for, and one of a paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

SphereTable = Literal["power2011", "dosenbach2010", "seitzman2018", "motoyama"]
#: Names that ``spheres`` may have instead of a file.
SPHERE_TABLES: Final[tuple[str, ...]] = get_args(SphereTable)
#: Those that state the size of their spheres.
SIZED_TABLES: Final = frozenset({"seitzman2018", "motoyama"})
#: Table -> who published it.
AUTHORS: Final[dict[str, str]] = {
    "power2011": "Power et al. (2011)",
    "dosenbach2010": "Dosenbach et al. (2010)",
    "seitzman2018": "Seitzman et al. (2020)",
    "motoyama": "Motoyama et al. (2019)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSpheres:
    """Name and centre (x, y, z) in mm of each sphere; radii in mm and name -> network, where the table has them."""

    spheres: list[tuple[str, float, float, float]]
    radius_mm: list[float] | None
    networks: dict[str, str] | None


def read_published_spheres(name: str) -> PublishedSpheres:
    """Return one of `SPHERE_TABLES`. Centres are in MNI space.

    The spheres of Power are named by their number, those of Dosenbach by region and number, those of Seitzman by
    their network and number in the published order.
    """
    return _READERS[name]()


def _power() -> PublishedSpheres:
    from nilearn.datasets import fetch_coords_power_2011  # noqa: PLC0415 - takes seconds

    rois = fetch_coords_power_2011().rois
    rows = zip(rois["roi"], rois["x"], rois["y"], rois["z"], strict=True)
    return PublishedSpheres(
        spheres=[(f"power{int(n):03d}", float(x), float(y), float(z)) for n, x, y, z in rows],
        radius_mm=None,
        networks=None,
    )


def _dosenbach() -> PublishedSpheres:
    from nilearn.datasets import fetch_coords_dosenbach_2010  # noqa: PLC0415 - takes seconds

    found = fetch_coords_dosenbach_2010(ordered_regions=False)
    names = [str(label) for label in found.labels]
    rows = zip(names, found.rois["x"], found.rois["y"], found.rois["z"], strict=True)
    return PublishedSpheres(
        spheres=[(name, float(x), float(y), float(z)) for name, x, y, z in rows],
        radius_mm=None,
        networks=dict(zip(names, map(str, found.networks), strict=True)),
    )


def _seitzman() -> PublishedSpheres:
    from nilearn.datasets import fetch_coords_seitzman_2018  # noqa: PLC0415 - takes seconds

    found = fetch_coords_seitzman_2018(ordered_regions=False)
    networks = [str(network) for network in found.networks]
    names = [f"{network}{i:03d}" for i, network in enumerate(networks, start=1)]
    rows = zip(names, found.rois["x"], found.rois["y"], found.rois["z"], strict=True)
    return PublishedSpheres(
        spheres=[(name, float(x), float(y), float(z)) for name, x, y, z in rows],
        radius_mm=[float(radius) for radius in found.radius],
        networks=dict(zip(names, networks, strict=True)),
    )


def _motoyama() -> PublishedSpheres:
    spheres = [
        ("mPFC", 1.0, 55.0, -3.0),
        ("PCC", 1.0, -61.0, 38.0),
        ("ACC", 0.0, 22.0, 35.0),
        ("left anterior insula", -44.0, 13.0, 1.0),
        ("right anterior insula", 47.0, 14.0, 0.0),
    ]
    return PublishedSpheres(spheres=spheres, radius_mm=[5.0] * len(spheres), networks=None)


_READERS: Final[dict[str, Callable[[], PublishedSpheres]]] = {
    "power2011": _power,
    "dosenbach2010": _dosenbach,
    "seitzman2018": _seitzman,
    "motoyama": _motoyama,
}
