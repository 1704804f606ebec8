"""What a search does unless told otherwise; flags read it, so importing this needs no torch."""

OBJECTIVE = "safety"
QUICK = ("repel", "redirect", "null-space", "hidden-units")  # edits of the end of towers: many trials a second
METHODS = (*QUICK, "ablate", "uwm")  # of the whole front
TRIALS, FRONT_TRIALS = 120, 300
