"""Who may use the web server, what was asked of it twice, and files that wait for a worker to read them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, LargeBinary, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from screening.database.tables.base import Leased, Table, lease_rules

ROLES = ("read", "submit", "admin")
PURPOSES = ("results", "prediction")


class AccessToken(Table):
    """A person or program that may use the web server; of the token itself only a digest is kept."""

    __tablename__ = "access_tokens"
    __table_args__ = (
        CheckConstraint("role IN ('read', 'submit', 'admin')", name="role"),
        CheckConstraint("octet_length(secret_sha256) = 32", name="secret_sha256"),
        {"comment": "who may use the web server; tokens are kept as digests"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True, comment="of the person or program that has the token")
    role: Mapped[str] = mapped_column(comment="read, submit (and read) or admin (and submit)")
    secret_sha256: Mapped[bytes] = mapped_column(unique=True, comment="SHA-256 of the token, which is 256 random bits")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None] = mapped_column(comment="from then on it is refused; NULL: never")
    revoked_at: Mapped[datetime | None] = mapped_column(comment="since then it is refused")
    last_used_at: Mapped[datetime | None] = mapped_column(comment="to the minute")


class Login(Table):
    """A browser in which somebody has logged in with a token."""

    __tablename__ = "logins"
    __table_args__ = (
        CheckConstraint("octet_length(secret_sha256) = 32", name="secret_sha256"),
        {"comment": "browsers in which somebody is logged in; over when the token is"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    token_id: Mapped[int] = mapped_column(ForeignKey("access_tokens.id", ondelete="CASCADE"), index=True)
    secret_sha256: Mapped[bytes] = mapped_column(unique=True, comment="SHA-256 of the cookie, which is 256 random bits")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


class IdempotentRequest(Table):
    """A request with an Idempotency-Key and its answer, written in the transaction that did what it asks."""

    __tablename__ = "idempotent_requests"
    __table_args__ = (
        UniqueConstraint("token_id", "key"),
        CheckConstraint("status BETWEEN 200 AND 299", name="status"),
        {"comment": "requests with an Idempotency-Key, and what was answered; kept for a week"},
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    token_id: Mapped[int] = mapped_column(ForeignKey("access_tokens.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(comment="what the client sent, of its own choice")
    request_sha256: Mapped[bytes] = mapped_column(comment="SHA-256 of method, path and body")
    status: Mapped[int | None] = mapped_column(comment="of the answer; NULL while it is worked on")
    answer: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class Upload(Leased, Table):
    """A file that was sent to the web server, for a worker to read: results to take in, structures to predict."""

    __tablename__ = "uploads"
    __table_args__ = (
        CheckConstraint("purpose IN ('results', 'prediction')", name="purpose"),
        CheckConstraint("size >= 0 AND octet_length(sha256) = 32", name="file"),
        CheckConstraint("state <> 'finished' OR report IS NOT NULL", name="finished_has_report"),
        CheckConstraint("state NOT IN ('waiting', 'running') OR content IS NOT NULL", name="open_has_content"),
        *lease_rules("uploads"),
        {"comment": "files that were sent to the web server, and what a worker found in them"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    purpose: Mapped[str] = mapped_column(comment="results (taken in) or prediction (of structures)")
    name: Mapped[str] = mapped_column(comment="file name without folders, as it was sent")
    size: Mapped[int] = mapped_column(BigInteger, comment="bytes")
    sha256: Mapped[bytes]
    content: Mapped[bytes | None] = mapped_column(
        LargeBinary, deferred=True, comment="the file; NULL once it is no longer needed"
    )
    options: Mapped[dict[str, Any]] = mapped_column(comment="how it is to be read: host, level of theory, model ...")
    report: Mapped[dict[str, Any] | None] = mapped_column(
        comment="what was taken in or refused and why, or predictions"
    )
    round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id", ondelete="SET NULL"), index=True)
    token_id: Mapped[int | None] = mapped_column(ForeignKey("access_tokens.id", ondelete="SET NULL"), index=True)
