"""One file a set: where its images lie, its labels, official parts and groups."""
