"""References, numbered in the order in which they are first cited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final


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
    "beckmann": Reference(
        text="Beckmann, Smith. Probabilistic independent component analysis for functional magnetic resonance imaging. "
        "IEEE Trans Med Imaging 2004;23:137-152.",
        doi="10.1109/TMI.2003.822821",
    ),
    "himberg": Reference(
        text="Himberg, Hyvarinen, Esposito. Validating the independent components of neuroimaging time series via "
        "clustering and visualization. NeuroImage 2004;22:1214-1222.",
        doi="10.1016/j.neuroimage.2004.03.027",
    ),
    "hyvarinen": Reference(
        text="Hyvarinen. Fast and robust fixed-point algorithms for independent component analysis. "
        "IEEE Trans Neural Netw 1999;10:626-634.",
        doi="10.1109/72.761722",
    ),
    "nickerson": Reference(
        text="Nickerson et al. Using dual regression to investigate network shape and amplitude in functional "
        "connectivity analyses. Front Neurosci 2017;11:115.",
        doi="10.3389/fnins.2017.00115",
    ),
    "smith-migp": Reference(
        text="Smith et al. Group-PCA for very large fMRI datasets. NeuroImage 2014;101:738-749.",
        doi="10.1016/j.neuroimage.2014.07.051",
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
    "besag": Reference(
        text="Besag, Clifford. Sequential Monte Carlo p-values. Biometrika 1991;78:301-304.",
        doi="10.1093/biomet/78.2.301",
    ),
    "bky": Reference(
        text="Benjamini, Krieger, Yekutieli. Adaptive linear step-up procedures that control the false discovery rate. "
        "Biometrika 2006;93:491-507.",
        doi="10.1093/biomet/93.3.491",
    ),
    "smith-nichols": Reference(
        text="Smith, Nichols. Threshold-free cluster enhancement. NeuroImage 2009;44:83-98.",
        doi="10.1016/j.neuroimage.2008.03.061",
    ),
    "winkler-blocks": Reference(
        text="Winkler et al. Multi-level block permutation. NeuroImage 2015;123:253-268.",
        doi="10.1016/j.neuroimage.2015.05.092",
    ),
    "winkler-tail": Reference(
        text="Winkler et al. Faster permutation inference in brain imaging. NeuroImage 2016;141:502-516.",
        doi="10.1016/j.neuroimage.2016.05.068",
    ),
    "power-nodes": Reference(
        text="Power et al. Functional network organization of the human brain. Neuron 2011;72:665-678.",
        doi="10.1016/j.neuron.2011.09.006",
    ),
    "dosenbach": Reference(
        text="Dosenbach et al. Prediction of individual brain maturity using fMRI. Science 2010;329:1358-1361.",
        doi="10.1126/science.1194144",
    ),
    "seitzman": Reference(
        text="Seitzman et al. A set of functionally-defined brain regions with improved representation of the "
        "subcortex and cerebellum. NeuroImage 2020;206:116290.",
        doi="10.1016/j.neuroimage.2019.116290",
    ),
    "zalesky": Reference(
        text="Zalesky, Fornito, Bullmore. Network-based statistic: identifying differences in brain networks. "
        "NeuroImage 2010;53:1197-1207.",
        doi="10.1016/j.neuroimage.2010.06.041",
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
    "shrout": Reference(
        text="Shrout & Fleiss. Intraclass correlations: uses in assessing rater reliability. Psychol Bull "
        "1979;86:420-428.",
        doi="10.1037/0033-2909.86.2.420",
    ),
    "cicchetti": Reference(
        text="Cicchetti. Guidelines, criteria, and rules of thumb for evaluating normed and standardized assessment "
        "instruments in psychology. Psychol Assess 1994;6:284-290.",
        doi="10.1037/1040-3590.6.4.284",
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


def join(parts: Iterable[str], *, last: str = "and") -> str:
    """Return ``a, b and c``."""
    words = list(parts)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""
