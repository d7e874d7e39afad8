"""Many trainings: grids, scheduling under Ray Tune, tracking and reports."""
