"""The only place that imports ray: cluster, indexing, the shard engine, progress."""
