"""Screens: layouts and metadata, image reading, plate statistics, packed plates, folds, simulator."""
