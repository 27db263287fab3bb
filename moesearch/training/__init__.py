"""Training: lanes in, EvalPoints out."""
