"""A simulated screen with the cells and batch effects of RxRx1, in any layout, with its plate design or without one."""
