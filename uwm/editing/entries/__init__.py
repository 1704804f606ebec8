"""Editors that score the entries of weights and change those of the highest scores."""
