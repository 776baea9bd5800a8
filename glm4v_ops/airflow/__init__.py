"""How Airflow runs the pipeline and shows it. The only part that imports Airflow."""
