"""Celery tasks: thin bodies around services. Nothing imports them; they are known by name."""
