"""Bytes and rows: PostgreSQL, run folders, results. Knows no model and no Optuna."""
