"""Tokens and logins of the web server, requests that may come twice, and files that wait for a worker.

Revision: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_tokens()
    _create_logins()
    _create_requests()
    _create_uploads()


def downgrade() -> None:
    for table in ("uploads", "idempotent_requests", "logins", "access_tokens"):
        op.drop_table(table)


def _time(name: str, *, default: bool = False, comment: str | None = None, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        server_default=sa.text("now()") if default else None,
        nullable=nullable and not default,
        comment=comment,
    )


def _create_tokens() -> None:
    op.create_table(
        "access_tokens",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="of the person or program that has the token"),
        sa.Column("role", sa.Text(), nullable=False, comment="read, submit (and read) or admin (and submit)"),
        sa.Column(
            "secret_sha256", sa.LargeBinary(), nullable=False, comment="SHA-256 of the token, which is 256 random bits"
        ),
        _time("created_at", default=True),
        _time("expires_at", comment="from then on it is refused; NULL: never"),
        _time("revoked_at", comment="since then it is refused"),
        _time("last_used_at", comment="to the minute"),
        sa.CheckConstraint("role IN ('read', 'submit', 'admin')", name=op.f("ck_access_tokens_role")),
        sa.CheckConstraint("octet_length(secret_sha256) = 32", name=op.f("ck_access_tokens_secret_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_tokens")),
        sa.UniqueConstraint("name", name=op.f("uq_access_tokens_name")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_access_tokens_secret_sha256")),
        comment="who may use the web server; tokens are kept as digests",
    )


def _create_logins() -> None:
    op.create_table(
        "logins",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column(
            "secret_sha256", sa.LargeBinary(), nullable=False, comment="SHA-256 of the cookie, which is 256 random bits"
        ),
        _time("created_at", default=True),
        _time("expires_at", nullable=False),
        sa.CheckConstraint("octet_length(secret_sha256) = 32", name=op.f("ck_logins_secret_sha256")),
        sa.ForeignKeyConstraint(
            ["token_id"], ["access_tokens.id"], name=op.f("fk_logins_token_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_logins")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_logins_secret_sha256")),
        comment="browsers in which somebody is logged in; over when the token is",
    )
    op.create_index(op.f("ix_logins_token_id"), "logins", ["token_id"], unique=False)


def _create_requests() -> None:
    op.create_table(
        "idempotent_requests",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False, comment="what the client sent, of its own choice"),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False, comment="SHA-256 of method, path and body"),
        sa.Column("status", sa.Integer(), nullable=True, comment="of the answer; NULL while it is worked on"),
        sa.Column("answer", postgresql.JSONB(), nullable=True),
        _time("created_at", default=True),
        sa.CheckConstraint("status BETWEEN 200 AND 299", name=op.f("ck_idempotent_requests_status")),
        sa.ForeignKeyConstraint(
            ["token_id"], ["access_tokens.id"], name=op.f("fk_idempotent_requests_token_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_idempotent_requests")),
        sa.UniqueConstraint("token_id", "key", name=op.f("uq_idempotent_requests_token_id_key")),
        comment="requests with an Idempotency-Key, and what was answered; kept for a week",
    )
    op.create_index(op.f("ix_idempotent_requests_created_at"), "idempotent_requests", ["created_at"], unique=False)


def _create_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False, comment="results (taken in) or prediction (of structures)"),
        sa.Column("name", sa.Text(), nullable=False, comment="file name without folders, as it was sent"),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes"),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=True, comment="the file; NULL once it is no longer needed"),
        sa.Column(
            "options",
            postgresql.JSONB(),
            nullable=False,
            comment="how it is to be read: host, level of theory, model ...",
        ),
        sa.Column(
            "report", postgresql.JSONB(), nullable=True, comment="what was taken in or refused and why, or predictions"
        ),
        sa.Column("round_id", sa.Integer(), nullable=True),
        sa.Column("token_id", sa.Integer(), nullable=True),
        sa.Column(
            "state", sa.Text(), server_default="waiting", nullable=False, comment="waiting, running, finished or failed"
        ),
        sa.Column(
            "attempts", sa.Integer(), server_default="0", nullable=False, comment="how often a worker has begun it"
        ),
        sa.Column("lease_owner", sa.Text(), nullable=True, comment="worker that holds it"),
        _time("lease_until", comment="after this time another worker may take it"),
        sa.Column("error", sa.Text(), nullable=True, comment="why it failed, or why the last attempt did"),
        _time("created_at", default=True),
        _time("started_at"),
        _time("finished_at"),
        sa.CheckConstraint("purpose IN ('results', 'prediction')", name=op.f("ck_uploads_purpose")),
        sa.CheckConstraint("size >= 0 AND octet_length(sha256) = 32", name=op.f("ck_uploads_file")),
        sa.CheckConstraint("state <> 'finished' OR report IS NOT NULL", name=op.f("ck_uploads_finished_has_report")),
        sa.CheckConstraint(
            "state NOT IN ('waiting', 'running') OR content IS NOT NULL", name=op.f("ck_uploads_open_has_content")
        ),
        sa.CheckConstraint("state IN ('waiting', 'running', 'finished', 'failed')", name=op.f("ck_uploads_state")),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL AND lease_until IS NOT NULL)", name=op.f("ck_uploads_lease")
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_uploads_failed_has_error")),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_uploads_attempts")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_uploads_round_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(
            ["token_id"], ["access_tokens.id"], name=op.f("fk_uploads_token_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
        comment="files that were sent to the web server, and what a worker found in them",
    )
    op.create_index(op.f("ix_uploads_round_id"), "uploads", ["round_id"], unique=False)
    op.create_index(op.f("ix_uploads_token_id"), "uploads", ["token_id"], unique=False)
    op.create_index(
        "ix_uploads_open",
        "uploads",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
