"""Objects of buckets: what there is of them, where their bytes are, and who sees to these."""
