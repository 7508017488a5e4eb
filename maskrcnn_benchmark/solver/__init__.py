"""How weights change: learning rates, schedules, averages, the optimizer."""
