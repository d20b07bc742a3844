"""From visits to derivatives: the nipype graph of one visit, the workers, resuming."""
