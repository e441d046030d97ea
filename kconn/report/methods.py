"""The methods paragraphs, written from the parameters that were used, with the references they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kconn.io.coordinates import AUTHORS
from kconn.report.bibliography import Bibliography, join
from kconn.report.confounds import chosen_strategy, describe_confounds
from kconn.report.data import ReportData, TestedContrast, kind_words
from kconn.report.statistics import write_statistics
from kconn.report.words import count

#: Published table of spheres -> its reference.
CITED: Final[Mapping[str, str]] = {
    "power2011": "power-nodes",
    "dosenbach2010": "dosenbach",
    "seitzman2018": "seitzman",
    "motoyama": "motoyama",
}


def write_methods(
    data: ReportData, bibliography: Bibliography, map_tests: Sequence[TestedContrast] = ()
) -> list[tuple[str, str]]:
    """Return (heading, paragraph) pairs; nothing is said that the parameters do not say.

    ``map_tests``: the tests of maps, one per node.
    """
    parameters = data.parameters
    return [
        ("Data", _data(data, _table(parameters, "inputs"), bibliography)),
        ("Denoising", _denoising(parameters, bibliography)),
        ("Quality", _quality(data, bibliography)),
        *_group_ica(parameters, bibliography),
        (
            "Connectivity",
            cite_spheres(parameters, bibliography)
            + _connectivity(data, _table(parameters, "connectivity"), bibliography),
        ),
        *_maps(parameters, bibliography),
        *_statistics(data, map_tests, bibliography),
    ]


def _statistics(
    data: ReportData, map_tests: Sequence[TestedContrast], bibliography: Bibliography
) -> list[tuple[str, str]]:
    """Return the paragraph on connections, and that on maps, as far as either was tested."""
    paragraphs = []
    if data.contrasts or not map_tests:
        paragraphs.append(("Statistics", write_statistics(data.contrasts, data.alpha, bibliography)))
    if map_tests:
        joint = (
            " All nodes were tested with one table of relabellings, so that p corrected over the maps of all nodes, by "
            "the largest statistic over all of them, is given beside it."
            if len({test.name for test in map_tests}) < len(map_tests)
            else ""
        )
        text = write_statistics(map_tests, data.alpha, bibliography, feature="voxel")
        paragraphs.append(("Statistics of maps", text + joint))
    return paragraphs


def _maps(parameters: Mapping[str, Any], bibliography: Bibliography) -> list[tuple[str, str]]:
    """Return how the maps of runs were made and put together, where there are any."""
    tables = _table(parameters, "nodes")
    seeds = [name for name, table in tables.items() if table.get("seed_maps")]
    subject = [name for name, table in tables.items() if table.get("subject_maps")]
    sentences = []
    if seeds:
        sentences.append(
            f"The mean series of each node of {join(seeds)} was correlated with every voxel over the kept frames, as "
            "Fisher's z (seed maps)."
        )
    if subject:
        unit = ", their variance set to one before," if all(tables[name].get("normalise") for name in subject) else ""
        sentences.append(
            f"The series of all nodes of {join(subject)}{unit} were fitted together to every voxel; the coefficients "
            f"are the maps of a run (dual regression{bibliography.cite('nickerson')})."
        )
    if sentences:
        share = float(_table(parameters, "maps").get("min_share", 1.0))
        of = "every session" if share == 1 else f"at least {share:.0%} of the sessions"
        sentences.append(f"Maps were averaged over the runs of a session, on the voxels with data in {of}.")
    return [("Maps", " ".join(sentences))] if sentences else []


def _group_ica(parameters: Mapping[str, Any], bibliography: Bibliography) -> list[tuple[str, str]]:
    return [
        (
            "Group ICA",
            " ".join(_decomposition(name, table, bibliography) for name, table in _table(parameters, "ica").items()),
        )
    ][: len(_table(parameters, "ica"))]


def _decomposition(name: str, table: Mapping[str, Any], bibliography: Bibliography) -> str:
    noise = {
        "residual": f"divided by its noise, the sd without the strongest components{bibliography.cite('beckmann')}",
        "sd": "divided by its sd",
        "none": "centred",
    }[str(table["normalise"])]
    rows = (
        "twice as many rows as the longest run has frames, less one"
        if table["n_rows"] == "twice"
        else (f"{table['n_rows']} rows")
    )
    number = (
        "as many components as stand out of white noise in the median run, by Minka's evidence,"
        if table["n_components"] == "estimate"
        else count(int(table["n_components"]), "component")
    )
    rejected = f" {count(len(table['reject']), 'component')} were rejected by hand." if table.get("reject") else ""
    matched = " Components were compared with known networks by spatial correlation." if table.get("templates") else ""
    return (
        f"For {name}, each voxel of a run was {noise}; runs were reduced and merged in a tree to {rows} "
        f"(MIGP{bibliography.cite('smith-migp')}). Their strongest axes were turned into {number} by FastICA"
        f"{bibliography.cite('hyvarinen')} from {count(int(table['n_start']), 'start')}; stability is the agreement of "
        f"the starts, after ICASSO{bibliography.cite('himberg')}.{matched}{rejected}"
    )


def _table(parameters: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parameters.get(name)
    return found if isinstance(found, Mapping) else {}


def _data(data: ReportData, inputs: Mapping[str, Any], bibliography: Bibliography) -> str:
    n_used = int((data.runs["excluded"].astype(str) == "").sum())
    n_subject = data.runs["subject"].nunique()
    source = "tables of node time series" if inputs.get("layout") == "tables" else "preprocessed resting-state runs"
    if inputs.get("layout") == "fmriprep":
        source = f"preprocessed images in the layout of fMRIPrep{bibliography.cite('esteban')}"
    return (
        f"{count(len(data.runs), 'run')} of {count(n_subject, 'participant')} were read as {source}; "
        f"{count(n_used, 'run')} entered the analysis."
    )


def _denoising(parameters: Mapping[str, Any], bibliography: Bibliography) -> str:
    denoise, quality = _table(parameters, "denoise"), _table(parameters, "quality")
    strategy = chosen_strategy(parameters)
    removed = [words + bibliography.cite(*keys) for words, keys in describe_confounds(parameters)]
    if denoise.get("detrend"):
        removed.append("a linear trend")
    if band := _band(denoise.get("high_pass"), denoise.get("low_pass")):
        removed.append(band)
    sentences = []
    if removed:
        kind = "projection" if strategy.components == "nonaggressive" else "orthogonal projection"
        together = f"in one {kind}, so that no step brings back what another removed"
        verb = "were removed " + together if len(removed) > 1 else "was removed"
        sentences.append(f"{join(removed)} {verb}{bibliography.cite('lindquist') if len(removed) > 1 else ''}.")
    else:
        sentences.append("The signal was used as it came; nothing was regressed or filtered.")
    if n_dummy := denoise.get("dummy_frames"):
        sentences.append(f"The first {count(int(n_dummy), 'frame')} of each run were dropped.")
    sentences += _before_the_fit(denoise, bibliography)
    if beyond := _censored(denoise, bibliography):
        effect = "only the frames that were kept entered the fit and the connectivity estimates"
        if strategy.spikes == "censored":
            effect = "each had a regressor of its own"
        sentences.append(f"Frames with {join(beyond, last='or')} were censored: {effect}.")
    if limits := _limits(quality):
        sentences.append(f"Runs with {join(limits, last='or')} were left out.")
    if of_session := _session_limits(quality):
        sentences.append(f"So were sessions whose remaining runs held fewer than {join(of_session, last='or')}.")
    return _capitalised(" ".join(sentences))


def _before_the_fit(denoise: Mapping[str, Any], bibliography: Bibliography) -> list[str]:
    """Return sentences about what is done to the signal before anything is fitted."""
    sentences = []
    if isinstance(fwhm := denoise.get("smoothing_fwhm"), int | float):
        sentences.append(f"Images were smoothed inside their mask with a Gaussian of {fwhm:g} mm FWHM.")
    if denoise.get("despike"):
        sentences.append(
            "Values further than 2.5 robust standard deviations from the running median of their voxel were drawn"
            f" towards it{bibliography.cite('cox')}."
        )
    return sentences


def _censored(denoise: Mapping[str, Any], bibliography: Bibliography) -> list[str]:
    """Return what a frame is censored for."""
    beyond = []
    if isinstance(threshold := denoise.get("fd_threshold"), int | float):
        source = bibliography.cite("jenkinson" if denoise.get("fd_kind") == "jenkinson" else "power")
        beyond.append(f"a framewise displacement above {threshold:g} mm{source}{_filtered(denoise, bibliography)}")
    if isinstance(threshold := denoise.get("dvars_threshold"), int | float):
        beyond.append(f"a standardised DVARS above {threshold:g}")
    return beyond


def _filtered(denoise: Mapping[str, Any], bibliography: Bibliography) -> str:
    """Return what was taken out of the motion before, or an empty string."""
    match denoise.get("motion_filter"):
        case [low, high]:
            return f" (of motion without {low:g} to {high:g} Hz{bibliography.cite('fair')})"
        case int() | float() as edge:
            return f" (of motion below {edge:g} Hz{bibliography.cite('gratton')})"
    return ""


def _quality(data: ReportData, bibliography: Bibliography) -> str:
    sentences = []
    if data.compared_motion() is not None:
        sentences.append(
            "Mean framewise displacement and the mean absolute step of each of the six motion parameters"
            f"{bibliography.cite('motoyama')} were compared between groups by Welch's t-test and between visits by the "
            "paired t-test, with p by permutation beside it, uncorrected."
        )
    if data.estimated_qc_fc():
        sentences.append(
            "The correlation of each connection with mean framewise displacement over subjects (QC-FC) and its "
            f"dependence on distance{bibliography.cite('ciric')} were compared with what relabelling subjects gives."
        )
    return " ".join(sentences) or "No measure of quality beyond the limits was computed."


def _band(high_pass: Any, low_pass: Any) -> str:
    low = high_pass if isinstance(high_pass, int | float) else None
    high = low_pass if isinstance(low_pass, int | float) else None
    if low is not None and high is not None:
        return f"frequencies outside {low:g} to {high:g} Hz"
    if low is not None:
        return f"frequencies below {low:g} Hz"
    return f"frequencies above {high:g} Hz" if high is not None else ""


def _session_limits(quality: Mapping[str, Any]) -> list[str]:
    words = {"min_session_frames": "{:g} frames", "min_session_minutes": "{:g} minutes"}
    return [text.format(quality[name]) for name, text in words.items() if isinstance(quality.get(name), int | float)]


def _limits(quality: Mapping[str, Any]) -> list[str]:
    words = {
        "min_frames": "fewer than {:g} frames kept",
        "min_minutes": "fewer than {:g} minutes kept",
        "min_dof": "fewer than {:g} degrees of freedom left",
        "max_mean_fd": "a mean framewise displacement above {:g} mm",
        "max_censored": "more than {:.0%} of their frames censored",
        "max_std_dvars": "a mean standardised DVARS above {:g}",
    }
    return [text.format(quality[name]) for name, text in words.items() if isinstance(quality.get(name), int | float)]


def cite_spheres(parameters: Mapping[str, Any], bibliography: Bibliography) -> str:
    """Return whose spheres the node sets are, of those that come from a published table."""
    tables = {name: table["spheres"] for name, table in _table(parameters, "nodes").items() if table.get("spheres")}
    words = [
        f"The nodes of {name} are the spheres of {AUTHORS[source]}{bibliography.cite(CITED[source])}. "
        for name, source in tables.items()
        if isinstance(source, str) and source in AUTHORS
    ]
    return "".join(words)


def _connectivity(data: ReportData, connectivity: Mapping[str, Any], bibliography: Bibliography) -> str:
    sets = [f"{name} ({count(len(table), 'node')})" for name, table in data.nodes.items()]
    kinds = list(dict.fromkeys(kind for _, kind in data.cohorts))
    words = [kind_words(kind) + _how(kind, connectivity, bibliography) for kind in kinds]
    sentences = [f"Node series of {join(sets)} were compared by {join(words)}."]
    scales = {str(cohort["netmat"].attrs.get("z")) for cohort in data.cohorts.values()}
    if scales & {"fisher", "ar1"}:
        sentences.append(
            f"Correlations were transformed to Fisher's z and averaged over the runs of a session"
            f"{bibliography.cite('silver')}."
        )
    if "ar1" in scales:
        sentences.append(
            f"Before, z was divided by its standard deviation among unrelated series of the same length and lag-1 "
            f"autocorrelation{bibliography.cite('smith')}."
        )
    if data.blocks:
        sentences.append("Connections were averaged over the edges within and between networks, per session.")
    if data.reliability:
        estimators = dict.fromkeys(str(found.attrs["kind"]) for found in data.reliability.values())
        sentences.append(
            f"The reliability of each connection is {join(estimators)}{bibliography.cite('shrout')}, graded after "
            f"Cicchetti{bibliography.cite('cicchetti')}."
        )
    return " ".join(sentences)


def _how(kind: str, connectivity: Mapping[str, Any], bibliography: Bibliography) -> str:
    """Return in brackets how a kind of netmat is made, where its name does not say it."""
    value = connectivity.get
    match kind:
        case "ridgep":
            return (
                f" (the covariance, divided by the root mean square of its diagonal, plus {value('rho')} times the "
                f"identity, inverted{bibliography.cite('smith')})"
            )
        case "glasso":
            return (
                f" (graphical lasso of the correlations with the penalty {value('alpha')}"
                f"{bibliography.cite('friedman')})"
            )
        case "ledoit" | "ledoitp":
            return f" (shrunk by the rule of Ledoit and Wolf{bibliography.cite('ledoit')})"
        case "tangent":
            return (
                f" (shrunk correlations{bibliography.cite('ledoit')} in the tangent space at the geometric mean of all "
                f"sessions{bibliography.cite('varoquaux')})"
            )
        case "corrsd":
            return (
                f" (the standard deviation of Fisher's z over windows of {value('window_s')} s, one every "
                f"{value('step_s')} s{bibliography.cite('hutchison')})"
            )
        case _:
            return ""


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
