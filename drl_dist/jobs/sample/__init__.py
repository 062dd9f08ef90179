"""Images from a trained model, on Ray actors."""
