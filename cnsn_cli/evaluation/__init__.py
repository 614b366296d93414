"""What models are worth, and what they cost."""
