"""Floor 4: the bundle, and from a case to a prediction. It stands under `train`, which validates by predicting."""
