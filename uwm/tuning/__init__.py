"""The search for edits with the most safety at the least loss of knowledge: its result, and how a point is picked."""
