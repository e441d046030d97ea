"""The methods paragraphs, written from the parameters that were used, with the references they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kconn.report.confounds import chosen_strategy, describe_confounds
from kconn.report.data import ReportData, TestedContrast, kind_words
from kconn.report.words import SIDES, count, format_alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One entry of the list of references."""

    text: str
    doi: str


REFERENCES: Final[Mapping[str, Reference]] = {
    "abraham": Reference(
        text="Abraham et al. Machine learning for neuroimaging with scikit-learn. Front Neuroinform 2014;8:14.",
        doi="10.3389/fninf.2014.00014",
    ),
    "benjamini": Reference(
        text="Benjamini, Hochberg. Controlling the false discovery rate. J R Stat Soc B 1995;57:289-300.",
        doi="10.1111/j.2517-6161.1995.tb02031.x",
    ),
    "behzadi": Reference(
        text="Behzadi et al. A component based noise correction method (CompCor) for BOLD and perfusion based fMRI. "
        "NeuroImage 2007;37:90-101.",
        doi="10.1016/j.neuroimage.2007.04.042",
    ),
    "ciric": Reference(
        text="Ciric et al. Benchmarking of participant-level confound regression strategies for the control of motion "
        "artifact in studies of functional connectivity. NeuroImage 2017;154:174-187.",
        doi="10.1016/j.neuroimage.2017.03.020",
    ),
    "cox": Reference(
        text="Cox. AFNI: software for analysis and visualization of functional magnetic resonance neuroimages. "
        "Comput Biomed Res 1996;29:162-173.",
        doi="10.1006/cbmr.1996.0014",
    ),
    "fair": Reference(
        text="Fair et al. Correction of respiratory artifacts in MRI head motion estimates. "
        "NeuroImage 2020;208:116400.",
        doi="10.1016/j.neuroimage.2019.116400",
    ),
    "gratton": Reference(
        text="Gratton et al. Removal of high frequency contamination from motion estimates in single-band fMRI saves "
        "data without biasing functional connectivity. NeuroImage 2020;217:116866.",
        doi="10.1016/j.neuroimage.2020.116866",
    ),
    "jenkinson": Reference(
        text="Jenkinson et al. Improved optimization for the robust and accurate linear registration and motion "
        "correction of brain images. NeuroImage 2002;17:825-841.",
        doi="10.1006/nimg.2002.1132",
    ),
    "esteban": Reference(
        text="Esteban et al. fMRIPrep: a robust preprocessing pipeline for functional MRI. "
        "Nat Methods 2019;16:111-116.",
        doi="10.1038/s41592-018-0235-4",
    ),
    "freedman": Reference(
        text="Freedman, Lane. A nonstochastic interpretation of reported significance levels. "
        "J Bus Econ Stat 1983;1:292-298.",
        doi="10.1080/07350015.1983.10509354",
    ),
    "friston": Reference(
        text="Friston et al. Movement-related effects in fMRI time-series. Magn Reson Med 1996;35:346-355.",
        doi="10.1002/mrm.1910350312",
    ),
    "griffanti": Reference(
        text="Griffanti et al. ICA-based artefact removal and accelerated fMRI acquisition for improved resting state "
        "network imaging. NeuroImage 2014;95:232-247.",
        doi="10.1016/j.neuroimage.2014.03.034",
    ),
    "lakens": Reference(
        text="Lakens. Calculating and reporting effect sizes to facilitate cumulative science. "
        "Front Psychol 2013;4:863.",
        doi="10.3389/fpsyg.2013.00863",
    ),
    "lindquist": Reference(
        text="Lindquist et al. Modular preprocessing pipelines can reintroduce artifacts into fMRI data. "
        "Hum Brain Mapp 2019;40:2358-2376.",
        doi="10.1002/hbm.24528",
    ),
    "hutchison": Reference(
        text="Hutchison et al. Dynamic functional connectivity: promise, issues, and interpretations. "
        "NeuroImage 2013;80:360-378.",
        doi="10.1016/j.neuroimage.2013.05.079",
    ),
    "friedman": Reference(
        text="Friedman, Hastie, Tibshirani. Sparse inverse covariance estimation with the graphical lasso. "
        "Biostatistics 2008;9:432-441.",
        doi="10.1093/biostatistics/kxm045",
    ),
    "ledoit": Reference(
        text="Ledoit, Wolf. A well-conditioned estimator for large-dimensional covariance matrices. "
        "J Multivar Anal 2004;88:365-411.",
        doi="10.1016/S0047-259X(03)00096-4",
    ),
    "motoyama": Reference(
        text="Motoyama et al. Resting-state brain functional connectivity in patients with chronic pain who responded "
        "to subanesthetic-dose ketamine. Sci Rep 2019;9.",
        doi="10.1038/s41598-019-49360-1",
    ),
    "nichols": Reference(
        text="Nichols, Holmes. Nonparametric permutation tests for functional neuroimaging. "
        "Hum Brain Mapp 2002;15:1-25.",
        doi="10.1002/hbm.1058",
    ),
    "phipson": Reference(
        text="Phipson, Smyth. Permutation p-values should never be zero. Stat Appl Genet Mol Biol 2010;9:39.",
        doi="10.2202/1544-6115.1585",
    ),
    "power": Reference(
        text="Power et al. Spurious but systematic correlations in functional connectivity MRI networks arise from "
        "subject motion. NeuroImage 2012;59:2142-2154.",
        doi="10.1016/j.neuroimage.2011.10.018",
    ),
    "pruim": Reference(
        text="Pruim et al. ICA-AROMA: A robust ICA-based strategy for removing motion artifacts from fMRI data. "
        "NeuroImage 2015;112:267-277.",
        doi="10.1016/j.neuroimage.2015.02.064",
    ),
    "satterthwaite": Reference(
        text="Satterthwaite et al. An improved framework for confound regression and filtering for control of motion "
        "artifact in the preprocessing of resting-state functional connectivity data. NeuroImage 2013;64:240-256.",
        doi="10.1016/j.neuroimage.2012.08.052",
    ),
    "silver": Reference(
        text="Silver, Dunlap. Averaging correlation coefficients: should Fisher's z transformation be used? "
        "J Appl Psychol 1987;72:146-148.",
        doi="10.1037/0021-9010.72.1.146",
    ),
    "smith": Reference(
        text="Smith et al. Network modelling methods for FMRI. NeuroImage 2011;54:875-891.",
        doi="10.1016/j.neuroimage.2010.08.063",
    ),
    "varoquaux": Reference(
        text="Varoquaux et al. Detection of brain functional-connectivity difference in post-stroke patients using "
        "group-level covariance modeling. MICCAI 2010:200-208.",
        doi="10.1007/978-3-642-15705-9_25",
    ),
    "ward": Reference(
        text="Ward. Hierarchical grouping to optimize an objective function. J Am Stat Assoc 1963;58:236-244.",
        doi="10.1080/01621459.1963.10500845",
    ),
    "winkler": Reference(
        text="Winkler et al. Permutation inference for the general linear model. NeuroImage 2014;92:381-397.",
        doi="10.1016/j.neuroimage.2014.01.060",
    ),
}


@dataclass(slots=True)
class Bibliography:
    """References in the order in which they are first cited."""

    keys: list[str] = field(default_factory=list)

    def cite(self, *keys: str) -> str:
        """Return ``" [1, 2]"``, or nothing without keys."""
        for key in keys:
            if key not in self.keys:
                self.keys.append(key)
        return f" [{', '.join(str(self.keys.index(key) + 1) for key in keys)}]" if keys else ""

    @property
    def references(self) -> list[Reference]:
        """The cited references, numbered from 1."""
        return [REFERENCES[key] for key in self.keys]


def write_methods(data: ReportData, bibliography: Bibliography) -> list[tuple[str, str]]:
    """Return (heading, paragraph) pairs; nothing is said that the parameters do not say."""
    parameters = data.parameters
    return [
        ("Data", _data(data, _table(parameters, "inputs"), bibliography)),
        ("Denoising", _denoising(parameters, bibliography)),
        ("Quality", _quality(data, bibliography)),
        ("Connectivity", _connectivity(data, _table(parameters, "connectivity"), bibliography)),
        ("Statistics", _statistics(data.contrasts, data.alpha, bibliography)),
    ]


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
        sentences.append(f"{_join(removed)} {verb}{bibliography.cite('lindquist') if len(removed) > 1 else ''}.")
    else:
        sentences.append("The signal was used as it came; nothing was regressed or filtered.")
    if n_dummy := denoise.get("dummy_frames"):
        sentences.append(f"The first {count(int(n_dummy), 'frame')} of each run were dropped.")
    sentences += _before_the_fit(denoise, bibliography)
    if beyond := _censored(denoise, bibliography):
        effect = "only the frames that were kept entered the fit and the connectivity estimates"
        if strategy.spikes == "censored":
            effect = "each had a regressor of its own"
        sentences.append(f"Frames with {_join(beyond, last='or')} were censored: {effect}.")
    if limits := _limits(quality):
        sentences.append(f"Runs with {_join(limits, last='or')} were left out.")
    if of_session := _session_limits(quality):
        sentences.append(f"So were sessions whose remaining runs held fewer than {_join(of_session, last='or')}.")
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
    if data.motion is not None and data.motion.sizes["comparison"]:
        sentences.append(
            f"Mean framewise displacement and the mean absolute step of each of the six motion parameters"
            f"{bibliography.cite('motoyama')} were compared between groups by Welch's t-test and between visits by the "
            "paired t-test, with p by permutation beside it, uncorrected."
        )
    if data.qc_fc:
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


def _connectivity(data: ReportData, connectivity: Mapping[str, Any], bibliography: Bibliography) -> str:
    sets = [f"{name} ({count(len(table), 'node')})" for name, table in data.nodes.items()]
    kinds = list(dict.fromkeys(kind for _, kind in data.cohorts))
    words = [kind_words(kind) + _how(kind, connectivity, bibliography) for kind in kinds]
    sentences = [f"Node series of {_join(sets)} were compared by {_join(words)}."]
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


def _statistics(contrasts: Sequence[TestedContrast], alpha: float, bibliography: Bibliography) -> str:
    if not contrasts:
        return "No contrast was tested."
    tests = {contrast.hypothesis.test for contrast in contrasts}
    models = {str(contrast.hypothesis.formula) for contrast in contrasts} - {"1"}
    flips = any("flip" in str(contrast.fact("shuffling", "")) for contrast in contrasts)
    numbers = sorted({contrast.n_perm for contrast in contrasts})
    sides = list(dict.fromkeys(SIDES[contrast.alternative] for contrast in contrasts))
    how = (
        [f"permuting residuals after Freedman and Lane{bibliography.cite('freedman', 'winkler')}"]
        if (tests & {"two-sample", "covariate"})
        else []
    )
    if flips or not how:
        how.append("flipping signs where a mean is tested" if how else "flipping signs")
    formula = f" (models: {_join(sorted(models))})" if models else ""
    exhaustive = [contrast.name for contrast in contrasts if contrast.fact("exhaustive", default=False)]
    every = f" Every distinct relabelling was used for {_join(dict.fromkeys(exhaustive))}." if exhaustive else ""
    standardised = "Cohen's d" if tests != {"covariate"} else "the partial correlation"
    if len(tests) > 1 and "covariate" in tests:
        standardised += " (for covariates the partial correlation)"
    return (
        f"Each connection was tested in a linear model{formula} by {_join(how, last='or')}, with "
        f"{_join(f'{number:,}' for number in numbers)} relabellings, the identity included; the smallest possible p is "
        f"therefore 1/{numbers[0]:,}{bibliography.cite('phipson')}.{every} Family-wise error over all connections of a "
        f"test was controlled by the distribution of the maximum statistic{bibliography.cite('nichols')}; a connection "
        f"counts as significant at p < {format_alpha(alpha)} ({_join(sides)}). The uncorrected p and the false "
        f"discovery rate of Benjamini and Hochberg{bibliography.cite('benjamini')} are given beside it, and "
        f"{standardised} as a standardised effect{bibliography.cite('lakens')}."
    )


def _join(parts: Iterable[str], *, last: str = "and") -> str:
    words = list(parts)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
