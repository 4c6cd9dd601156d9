"""What stage validate is made of: from the manifest to a verdict on the data."""
