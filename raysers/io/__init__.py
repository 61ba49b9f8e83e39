"""Files and objects: URIs, storage, listings, S3 through boto3; never torch or ray."""
