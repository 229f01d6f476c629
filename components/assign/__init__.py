"""assign: wells named, before and after the plate design."""
