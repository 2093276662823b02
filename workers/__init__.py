"""Celery workers: transport only; the work and its state are rows in PostgreSQL."""
