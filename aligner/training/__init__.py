"""What two training methods share."""
