"""normalize: reads a screen, packs its plates and writes the manifests that every other step starts from."""
