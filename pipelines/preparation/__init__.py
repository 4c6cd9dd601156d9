"""What stage prepare is made of: from the images of a source to the prepared data."""
