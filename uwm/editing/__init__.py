"""Training-free edits: what changes, the patch that keeps it, files and live models that hold it."""
