"""Makes a bucket where there is none: `python create_bucket.py NAME`; AWS_... of the environment say where."""

import sys

import boto3


def create_bucket(name: str) -> bool:
    """Whether the bucket had to be made."""
    s3 = boto3.client("s3")
    if name in (bucket["Name"] for bucket in s3.list_buckets()["Buckets"]):
        return False
    s3.create_bucket(Bucket=name)
    return True


if __name__ == "__main__":
    print(f"bucket {sys.argv[1]}:", "made" if create_bucket(sys.argv[1]) else "is there")
