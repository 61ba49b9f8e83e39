"""Storage, listings, manifests and shards: pyarrow and boto3; never torch or ray."""
