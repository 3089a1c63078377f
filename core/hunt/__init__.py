"""HeadHunter: which heads to weaken for a goal, searched on the user's own model."""
