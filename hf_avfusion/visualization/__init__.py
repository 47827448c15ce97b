"""What a model looked at and listened to."""
