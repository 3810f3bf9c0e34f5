"""One student, one run: data, models, losses, the loop, evaluation. Knows no database and no Optuna."""
