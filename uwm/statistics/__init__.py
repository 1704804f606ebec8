"""What a model computes on pairs, summed up in one pass: hooks, batches, and reducers of what passes by."""
