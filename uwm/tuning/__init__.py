"""The search for edits with the most safety at the least loss of knowledge: what it finds, and how a point is picked."""
