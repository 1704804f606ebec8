"""Closed-form edits: statistics of one pass, then linear algebra in float64; no gradient and no step size."""
