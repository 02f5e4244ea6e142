"""What several analyses share: measurements, the selection of steps, and results of every step."""
