"""What a training will need, by arithmetic alone: memory, time, energy, money. No torch."""
