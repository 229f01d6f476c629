"""A challenger compared with the champion on held-out experiments that neither ever saw, and whether it is promoted. Pure.

reading -> plate_counts -> bootstrap -> comparing (rails) -> decision -> shown, terminal, markdown. Storing and promoting are
the registry's.
"""
