"""Forms whose fields are read one by one, since they are not known before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import FormData

Fields = dict[str, str]


async def _form(request: Request) -> AsyncIterator[FormData]:
    form = await request.form()
    try:
        yield form
    finally:
        await form.close()


FormOf = Annotated[FormData, Depends(_form)]
