"""What a scheduler is on the device: its rows, its tables, and its values ahead."""
