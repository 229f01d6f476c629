"""Compares a challenger with the champion on held-out experiments that neither model saw: wells -> decision -> markdown. Pure."""
