"""The web side: REST API, pages and OPTIMADE, on FastAPI. Knows the pipeline and the database, never torch."""
