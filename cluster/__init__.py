"""What every part stands on: errors, recipes, run folders, weights, the Ray session, the command."""
