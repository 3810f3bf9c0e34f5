"""Decides what to try, who runs it and when it ends. The only package that knows Optuna."""
