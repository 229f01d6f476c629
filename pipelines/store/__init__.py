"""The command `cellsignal store`."""
