"""Tables, tars, corpora, manifests and shards; never torch or ray."""
