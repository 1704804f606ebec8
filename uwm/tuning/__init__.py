"""Search for the safest edit within a budget of loss. Importing this package needs no torch."""
