"""Screens: layouts and tables, image files, packing into OME-Zarr plates and reading them back, folds, simulation."""
