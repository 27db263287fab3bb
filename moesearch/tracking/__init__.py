"""Views for people who watch: MLflow."""
