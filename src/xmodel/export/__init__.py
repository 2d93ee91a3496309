"""What a finished model is written as for other engines."""
