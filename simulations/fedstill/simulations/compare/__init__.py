"""A fair comparison: methods × scenarios × seeds, every one with the same data, students and private training."""
