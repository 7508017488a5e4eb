"""What shows results to people: drawn boxes, and the demonstration."""
