"""Objects of buckets, as a program sees them."""
