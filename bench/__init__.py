"""Measurements behind decisions; run by hand, never imported by distune."""
