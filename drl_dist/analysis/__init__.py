"""What long chains say about a trained model."""
