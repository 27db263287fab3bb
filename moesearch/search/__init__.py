"""The search: ask, train, report, prune, tell."""
