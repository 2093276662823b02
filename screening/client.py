"""A thin client of the REST API: tables as pandas DataFrames, structures as pymatgen Structures.

    from screening import Client

    with Client("http://127.0.0.1:8000", token="scr_...") as client:
        best = client.run_design({"host": "MoS2", "windows": ["homo_lumo_gap_min=1.0:1.2"], "limit": 50})
        structure = client.candidate_structure(best.campaign[0], best.candidate[0])

What the server refuses is raised as the error of our tree, with the server's text. Energies are in eV.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import httpx2

from screening.errors import InputError, ScreeningError, ServiceError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core.structure import Structure

_RAISED: dict[int, type[ScreeningError]] = {404: UnknownNameError, 422: InputError, 413: InputError, 503: ServiceError}
_PATIENCE_S = 60.0
_ROWS = 1000  # of a page


class Client:
    """Speaks to a server with a token; to be used in a `with` block, or closed.

    Args:
        address: of the server, as `screening up` prints it.
        token: that `screening token create` made; None where anybody may read.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx2.Client(base_url=f"{address.rstrip('/')}/api/v1/", headers=headers, timeout=_PATIENCE_S)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def hosts(self) -> pd.DataFrame:
        """A row per supercell: host, formula, supercell, n_sites, n_operations, configurations, results."""
        return _table(self._get("hosts")["rows"])

    def add_supercell(self, host: str, supercell: str) -> dict[str, Any]:
        """Add a supercell of a host of the database or the catalogue; again changes nothing."""
        return self._post("hosts", {"host": host, "supercell": supercell})

    def host_structure(self, host: str, supercell: str) -> Structure:
        """The pristine supercell."""
        return self._structure(f"hosts/{_quoted(host)}/{_quoted(supercell)}/structure")

    def count(self, **space: Any) -> dict[str, Any]:
        """Exact numbers of a search space: host, supercell, defect_types, max_defects and what else limits it."""
        return self._post("search-spaces/count", space)

    def campaigns(self) -> pd.DataFrame:
        """How far the campaigns are."""
        return _table(self._get("campaigns")["rows"])

    def campaign(self, name: str) -> dict[str, Any]:
        """A campaign: what it is and how far it is."""
        return self._get(f"campaigns/{_quoted(name)}")

    def plan_campaign(self, space: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Plan a campaign and what it costs; `start=True` starts it, `keep={...}` keeps the best of a design query."""
        return self._post("campaigns", {"space": dict(space), **options})

    def change_campaign(self, name: str, verb: Literal["start", "pause", "resume", "cancel"]) -> dict[str, Any]:
        """Start, pause, resume or cancel a campaign."""
        return self._post(f"campaigns/{_quoted(name)}/{_quoted(verb)}")

    def wait_for_campaign(self, name: str, *, timeout_s: float = 3600.0) -> dict[str, Any]:
        """Wait until a campaign is over.

        Raises:
            ServiceError: it is not over in time.
            ScreeningError: it ended incomplete or cancelled.
        """
        deadline = time.monotonic() + timeout_s
        while (found := self.campaign(name))["state"] in ("running", "planned"):
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"campaign {name} is not over after {timeout_s:g} s; it goes on without being watched"
                )
            time.sleep(1.0)
        if found["state"] != "finished":
            raise ScreeningError(f"campaign {name} is {found['state']}: {found['error'] or 'somebody has stopped it'}")
        return found

    def models(self) -> pd.DataFrame:
        """The versions of all models."""
        return _table(self._get("models")["rows"])

    def metrics(self, model: str) -> pd.DataFrame:
        """Errors of a model on validation rows: dataset, property, n_rows, mae, rmse."""
        return _table(self._get(f"models/{_quoted(model)}")["metrics"])

    def run_design(
        self, query: Mapping[str, Any], *, model: str | None = None, campaign: str | None = None, pages: int = 1
    ) -> pd.DataFrame:
        """The candidates that satisfy a design query, best first; `gap_mean` and so on are columns of their own.

        Args:
            pages: how many pages of the query's limit are read, at most.
        """
        body: dict[str, Any] = {"query": dict(query), "model": model, "campaign": campaign}
        rows: list[dict[str, Any]] = []
        for _ in range(pages):
            page = self._post("designs/run", body)
            rows += page["rows"]
            if page["after"] is None:
                break
            body["after"] = page["after"]
        return _table(map(_flat, rows))

    def keep_ranking(self, query: Mapping[str, Any], *, name: str | None = None, **of: Any) -> dict[str, Any]:
        """Run a design query and keep its answer as a ranking."""
        return self._post("rankings", {"query": dict(query), "name": name, **of})

    def rankings(self) -> pd.DataFrame:
        """The rankings that were kept."""
        return _table(self._pages("rankings"))

    def ranking(self, name: str | int) -> pd.DataFrame:
        """The rows of a ranking."""
        return _table(map(_flat, self._get(f"rankings/{_quoted(name)}")["rows"]))

    def compare_rankings(self, older: str | int, newer: str | int) -> pd.DataFrame:
        """What rose, fell, came and went, and why."""
        return _table(self._get(f"rankings/{_quoted(newer)}/changes", since=str(older))["rows"])

    def candidate_structure(self, campaign: str, candidate: int) -> Structure:
        """The unrelaxed structure of a candidate."""
        return self._structure(f"candidates/{_quoted(campaign)}/{int(candidate)}/structure")

    def why(self, campaign: str, candidate: int) -> dict[str, Any]:
        """What a prediction comes from: model, nearest calculated relatives, files."""
        return self._get(f"candidates/{_quoted(campaign)}/{int(candidate)}/why")

    def export_ranking(self, name: str | int, path: str | Path, *, format: str = "parquet") -> Path:
        """Write the rows of a ranking into a file: csv, parquet, extxyz, poscar (a zip), json or ase."""
        return self._download("GET", f"rankings/{_quoted(name)}/export", Path(path), format=format)

    def propose(self, query: Mapping[str, Any], *, n: int = 5, **options: Any) -> pd.DataFrame:
        """Propose the next calculations as a round; its name is in `attrs["round"]`."""
        found = self._post("rounds", {"query": dict(query), "n": n, **options})
        table = _table(found["calculations"])
        table.attrs["round"] = found["round"]
        return table

    def rounds(self) -> pd.DataFrame:
        """How far the rounds are."""
        return _table(self._pages("rounds"))

    def round_inputs(self, round: str | int, path: str | Path, *, only_structures: bool = False) -> Path:
        """Write the inputs of a round into a zip; they count as exported."""
        return self._download("POST", f"rounds/{_quoted(round)}/inputs", Path(path), only_structures=only_structures)

    def send_results(self, path: str | Path, *, wait: bool = True, **of: Any) -> dict[str, Any]:
        """Send a file of results, or an archive of them; what became of each is in `report`.

        Args:
            of: `level`, `new_level`, `host`, `round`, where the file does not say them.
        """
        return self._send("results", Path(path), of, wait=wait)

    def predict(self, path: str | Path, *, model: str | None = None) -> pd.DataFrame:
        """Send structures and wait for their predictions; what was refused is in `attrs["refusals"]`."""
        report = self._send("predictions", Path(path), {} if model is None else {"model": model}, wait=True)["report"]
        table = _table(report["rows"])
        table.attrs["refusals"] = report["refusals"]
        return table

    def _send(self, what: str, path: Path, fields: Mapping[str, Any], *, wait: bool) -> dict[str, Any]:
        with path.open("rb") as stream:
            sent = self._call("POST", what, files={"file": (path.name, stream)}, data=dict(fields)).json()
        while wait and sent["state"] in ("waiting", "running"):
            time.sleep(0.5)
            sent = self._get(f"uploads/{sent['id']}")
        if sent["state"] == "failed":
            raise InputError(f"{path.name} could not be read: {sent['error']}")
        found: dict[str, Any] = sent
        return found

    def _structure(self, path: str) -> Structure:
        from pymatgen.core.structure import Structure

        return Structure.from_dict(self._get(path, format="json"))

    def _download(self, method: str, path: str, target: Path, **parameters: Any) -> Path:
        target.write_bytes(self._call(method, path, params=parameters).content)
        return target

    def _pages(self, path: str) -> Iterator[dict[str, Any]]:
        """The rows of all pages of a list."""
        after: dict[str, Any] = {}
        while True:
            page = self._get(path, limit=_ROWS, **after)
            yield from page["rows"]
            if page["next_cursor"] is None:
                return
            after = {"after": page["next_cursor"]}

    def _get(self, path: str, **parameters: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", path, params=parameters).json()
        return found

    def _post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self._call("POST", path, json=None if body is None else dict(body)).json()
        return found

    def _call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """An answer of the server.

        Raises:
            ScreeningError: it refuses, or does not answer.
        """
        try:
            answer = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise ServiceError(
                f"no server answers at {self._http.base_url} ({error}); start it with `screening up`, or give the "
                "address of another"
            ) from error
        if answer.is_success:
            return answer
        is_problem = answer.headers.get("content-type", "").startswith("application/problem+json")
        detail = answer.json()["detail"] if is_problem else answer.reason_phrase
        raise _RAISED.get(answer.status_code, ScreeningError)(f"{detail} (HTTP {answer.status_code})")


def _quoted(name: object) -> str:
    """A name as a part of a path."""
    return quote(str(name), safe="")


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with a column for each mean and standard deviation."""
    values = {f"{name}_{part}": value for name, of in row["values"].items() for part, value in of.items()}
    return {key: value for key, value in row.items() if key != "values"} | values


def _table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows))
