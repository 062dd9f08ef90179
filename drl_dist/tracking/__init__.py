"""What MLflow is told: runs, metrics and pictures, model versions. The only place that imports mlflow."""
