"""What uses a trained network: loading, predicting, evaluating, exporting."""
