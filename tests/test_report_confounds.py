"""What the methods paragraph says of confounds."""

import pytest

from kconn.clean.confounds import PRESETS, STRATEGIES
from kconn.report.bibliography import REFERENCES
from kconn.report.confounds import describe_confounds


def said(confounds, **tables):
    phrases = describe_confounds({"denoise": {"confounds": confounds}, **tables})
    assert all(key in REFERENCES for _, keys in phrases for key in keys)
    return "; ".join(words for words, _ in phrases)


@pytest.mark.parametrize("preset", [*PRESETS, *STRATEGIES])
def test_describe_confounds__has_words_for_every_preset(preset):
    text = said(preset)

    assert bool(text) == (preset != "none")
    assert preset not in text
    assert "the confound" not in text


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("36P", "36 regressors"),
        (
            "acompcor",
            "backward differences; the first 5 CompCor components of each of white matter and CSF (with their",
        ),
        ("aroma", "white matter and CSF; the noise components of an independent component analysis, made orthogonal"),
        ("fix", "fitted together with its signal components"),
    ],
)
def test_describe_confounds__says_what_a_preset_is(preset, words):
    assert words in said(preset)


def test_describe_confounds__of_a_written_strategy():
    table = {
        "columns": ["6P", "csf", "rot_.*"],
        "derivatives": True,
        "squares": ["csf"],
        "compcor": ["w"],
        "n_component": None,
        "variance": 0.5,
        "components": "none",
        "spikes": "censored",
    }

    text = said("mine", strategies={"mine": table}, compcor={"white_matter": "wm.nii", "csf": None, "erode": 1})

    assert text == (
        "the six rigid-body motion parameters; the confounds csf and rot_.*; their backward differences; the squares "
        "of csf; as many CompCor components as explain 50% of the variance of white matter (computed from masks); "
        "one regressor for each censored frame"
    )


def test_describe_confounds__of_a_list_names_its_columns():
    assert said(["csf", "24P"]).endswith("the confound csf")
    assert said("none") == ""
    assert said([]) == ""
