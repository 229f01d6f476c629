"""Programs that train many related configurations on this machine: the growth chart and the organisers' protocols."""
