"""Design queries as requests carry them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from screening.database.design_query import DesignQuery
from screening.errors import InputError
from screening.pipeline.query_context import with_stored_host

MOST_ROWS = 1000  # of one answer; exports have no such limit


def read_design(session: Session, fields: Mapping[str, Any]) -> DesignQuery:
    """A design query of its fields, about hosts as the database names them.

    Raises:
        InputError: a field is not acceptable; with its name, what was found and what is allowed.
    """
    unnamed = [name for name in fields if not isinstance(name, str)]
    if unnamed:
        raise InputError(f"the design query has fields that are no names: {unnamed}")
    return with_stored_host(session, DesignQuery.of(**fields))
