"""A simulated screen with the files, the plate design and the batch effects of RxRx1."""
