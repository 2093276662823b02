"""REST v1: the same pipeline as the commands, over HTTP. Every answer has a typed model, which /docs shows."""

from __future__ import annotations

from fastapi import APIRouter

from screening.web.api import campaigns, candidates, designs, hosts, models, rounds, uploads

router = APIRouter(prefix="/api/v1")
for module in (hosts, campaigns, models, designs, candidates, rounds, uploads):
    router.include_router(module.router)
