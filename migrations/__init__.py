"""Alembic migrations: every table, column and constraint comes from here."""
