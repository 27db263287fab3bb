"""The speed of moesearch on this machine, measured side by side against what it claims to beat."""
