"""assign: predictions of wells, before and after the plate design."""
