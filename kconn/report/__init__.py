"""The HTML report of a study and the figures in it."""

from kconn.report.data import (
    Recovery,
    ReportData,
    TestedContrast,
    describe_contrast,
    edge_table,
    recover_truth,
)
from kconn.report.html import render_report, write_report

__all__ = [
    "Recovery",
    "ReportData",
    "TestedContrast",
    "describe_contrast",
    "edge_table",
    "recover_truth",
    "render_report",
    "write_report",
]
