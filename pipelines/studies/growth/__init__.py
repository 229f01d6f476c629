"""growth: where accuracy comes from, rung by rung on a simulated screen, beside the method's published curve."""
