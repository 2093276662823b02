"""Who may read: the role `screening_reader` of migration 0008, and people with passwords of their own.

A role belongs to the whole server; what it may read, to each database. The owner of the database takes the role for a
session, as a guard against slips: every table could still be read and written without it. A person who is to read
and nothing else gets a role that can log in and is a member of `screening_reader`.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from psycopg import Connection, sql
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import Session

from screening.errors import InputError, ServiceError, UnknownNameError

READER = "screening_reader"
READ_ONLY = "-c default_transaction_read_only=on"
AS_READER = f"-c role={READER} {READ_ONLY}"
"""Options of a connection (PGOPTIONS) whose session reads as the role, or as whoever connects."""

_OWNED = text(
    "SELECT o.identity FROM pg_shdepend AS d JOIN pg_roles AS r ON r.oid = d.refobjid "
    "CROSS JOIN pg_identify_object(d.classid, d.objid, d.objsubid) AS o "
    "WHERE r.rolname = :name AND d.refclassid = 'pg_authid'::regclass AND d.deptype = 'o' "
    "AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) "
    "AND d.classid <> 'pg_largeobject'::regclass AND coalesce(o.schema, '') NOT LIKE 'pg\\_temp%' ORDER BY 1"
)
"""What somebody owns here besides large objects and temporary tables, which every reader can make."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


@dataclass(frozen=True)
class Reader:
    """A person who may read.

    Attributes:
        n_connections: sessions that are open now.
    """

    name: str
    n_connections: int


def role_problem(session: Session) -> str | None:
    """Why a session cannot read as the role here, and who mends it; None if it can.

    Rights that are missing, since the role was made after the migration, are given.
    """
    user = session.scalar(text("SELECT current_user"))
    if not session.scalar(text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :name)"), {"name": READER}):
        return (
            f"this server has no role {READER}, and {user} may not make it; an administrator of the server runs "
            f"CREATE ROLE {READER}; GRANT {READER} TO {user};"
        )
    if not session.scalar(text("SELECT pg_has_role(:name, 'SET')"), {"name": READER}):
        return f"{user} may not take the role {READER}; an administrator of the server runs GRANT {READER} TO {user};"
    is_granted = "SELECT has_table_privilege(:name, 'candidate_predictions', 'SELECT')"
    if not session.scalar(text(is_granted), {"name": READER}):
        session.execute(text("SELECT grant_to_readers()"))
    return None


def add_reader(session: Session, name: str) -> str:
    """Make a person who may read the documented views, in transactions that write nothing; the password.

    The server gets the password's digest only, so that no log has it.

    Raises:
        InputError: the name is taken, or is none that needs no quotes.
        ServiceError: we may not make roles on this server.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a reader; expected small letters, digits and _: anna")
    problem = role_problem(session)
    if problem is not None:
        raise ServiceError(problem)
    if session.scalar(text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :name)"), {"name": name}):
        raise InputError(f"the server has a role {name} already; choose another name, or drop the reader first")
    password = secrets.token_urlsafe(18)
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, Connection)
    digest = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    role = sql.Identifier(name)
    try:
        session.connection().exec_driver_sql(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}")
            .format(role, sql.Literal(digest), sql.Identifier(READER))
            .as_string(connection)
        )
        session.connection().exec_driver_sql(
            sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(role).as_string(connection)
        )
    except ProgrammingError as error:
        reason = " ".join(str(error.orig).split())
        raise ServiceError(f"no reader can be made on this server ({reason}); ask its administrator") from error
    return password


def list_readers(session: Session) -> list[Reader]:
    """Those who may log in and read, by name."""
    rows = session.execute(
        text(
            "SELECT member.rolname, (SELECT count(*) FROM pg_stat_activity WHERE usename = member.rolname) "
            "FROM pg_auth_members JOIN pg_roles AS granted ON granted.oid = roleid "
            "JOIN pg_roles AS member ON member.oid = pg_auth_members.member "
            "WHERE granted.rolname = :name AND member.rolcanlogin AND member.rolname <> current_user "
            "AND NOT member.rolsuper AND NOT member.rolcreaterole ORDER BY 1"
        ),
        {"name": READER},
    )
    return [Reader(str(name), int(n)) for name, n in rows]


def drop_reader(session: Session, name: str) -> None:
    """Take a person's access away, with the large objects that they have made; an open session goes on until it ends.

    Raises:
        UnknownNameError: there is no such reader.
        InputError: they own more than a reader can make, which would be dropped too.
        ServiceError: the server refuses, since they own something in another database or we may not.
    """
    known = [reader.name for reader in list_readers(session)]
    if name not in known:
        raise UnknownNameError(f"no reader is called {name}; the readers are {', '.join(known) or 'none'}")
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, Connection)
    owned = session.scalars(_OWNED, {"name": name}).all()
    if owned:
        raise InputError(
            f"{name} owns {', '.join(owned[:3])}{' and more' if len(owned) > 3 else ''}, which readers cannot make; an "
            f"administrator runs REASSIGN OWNED BY {name} TO somebody else first"
        )
    statements = ["DROP OWNED BY {}", "DROP ROLE {}"]
    if not session.scalar(text("SELECT pg_has_role(:name, 'USAGE')"), {"name": name}):
        statements.insert(0, "GRANT {} TO CURRENT_USER WITH INHERIT TRUE")  # who made a role may take its rights
    try:
        for statement in statements:
            dropping = sql.SQL(statement).format(sql.Identifier(name)).as_string(connection)
            session.connection().exec_driver_sql(dropping)
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        raise ServiceError(
            f"the server does not drop {name} ({reason}); an administrator runs DROP OWNED BY {name} in each database "
            f"that is named, then DROP ROLE {name}"
        ) from error
