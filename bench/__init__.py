"""Measurements made by hand, each run as ``python -m bench.NAME``; no part of the installed project."""
