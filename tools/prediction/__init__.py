"""Placements by which the planner's predictions are judged."""
