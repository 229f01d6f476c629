"""Metrics, calibration, quality control, figures and the pages of reports."""
