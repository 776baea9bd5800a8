"""Captions and text for a day's images: what is done, without Airflow. See README.md for the map."""

__version__ = "0.1.0"
