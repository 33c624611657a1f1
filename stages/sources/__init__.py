"""Films and tables before training: archives, raw tables, contracts, splits, image shards and views."""
