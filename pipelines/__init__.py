"""The DAGs and how they are started; imports kfp, never torch."""
