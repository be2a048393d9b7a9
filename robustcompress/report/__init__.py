"""What came out of a run: numbers as JSON, a table for terminals, a page with pictures."""
