"""What the heads of a model do, read from a few of its attention calls: statistics, labels, numbers, pictures."""
