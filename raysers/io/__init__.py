"""Files and objects: URIs, storage, listings, S3 through boto3 and obstore; never torch or ray."""
