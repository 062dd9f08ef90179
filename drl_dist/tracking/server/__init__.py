"""The MLflow server: its address, its client, and what its answers mean."""
