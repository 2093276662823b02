"""Pages for people: Jinja2 templates that work without scripts, and better with them."""

from __future__ import annotations

from fastapi import APIRouter

from screening.web.pages import campaigns, candidates, explore, hosts, models, new_screening, overview, rankings, rounds

router = APIRouter(include_in_schema=False)
for module in (overview, hosts, new_screening, campaigns, explore, candidates, rankings, models, rounds):
    router.include_router(module.router)
