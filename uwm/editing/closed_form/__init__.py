"""Editors in closed form: statistics of one pass, then linear algebra in float64; no gradient descent, no step size."""
