"""What a trained model is handed on as: parameters, and functions for other programs."""
