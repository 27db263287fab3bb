"""The report: what a study found, for people."""
