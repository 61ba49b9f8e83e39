"""The shard engine on Ray Data: cluster, plan, workers, parts, progress."""
