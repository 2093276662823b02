"""The client against a live server on a made project, with workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine

from screening import Client
from screening.database.session import session_scope
from screening.database.tokens import add_token
from screening.dft.structures import write_structure
from screening.errors import InputError, ScreeningError, ServiceError, UnknownNameError
from tests.synthetic_results import LEVEL, mos2, random_configurations
from tests.web.browser import serving, working
from tests.web.conftest import made, made_app, made_once
from tests.web.made_project import QUERY, Made

__all__ = ["made", "made_app", "made_once"]  # fixtures


@pytest.fixture(scope="module")
def address(made_app: FastAPI, made: tuple[Engine, Made]) -> Iterator[str]:
    with serving(made_app) as found, working(made[0]):
        yield found


@pytest.fixture(scope="module")
def client(address: str, made: tuple[Engine, Made]) -> Iterator[Client]:
    with session_scope(made[0]) as session:
        token = add_token(session, "the client", "submit")
    with Client(address, token) as found:
        yield found


def test_tables_are_data_frames_and_structures_are_those_of_pymatgen(client: Client) -> None:
    hosts = client.hosts()
    assert hosts.loc[0, ["host", "supercell"]].tolist() == ["MoS2", "4x4"]
    assert client.host_structure("MoS2", "4x4").composition.reduced_formula == "MoS2"
    assert (
        client.count(host="MoS2", supercell="8x8", defect_types="v_S,Se_S,v_Mo,W_Mo", max_defects=3)["by_defects"]["3"]
        == 13_446
    )  # of the paper
    assert client.metrics("small").property.tolist()


def test_pages_of_a_design_query_are_put_together(client: Client) -> None:
    everything = client.run_design(QUERY | {"limit": 100})
    assert len(everything) == 25
    assert client.run_design(QUERY, pages=10).candidate.tolist() == everything.candidate.tolist()
    assert everything.homo_lumo_gap_min_std.gt(0).all()
    row = everything.iloc[0]
    structure = client.candidate_structure(row.campaign, row.candidate)
    assert len(structure) == 48 - sum(name.startswith("v_") for name in row.defects)
    assert client.why(row.campaign, row.candidate)["nearest"]


def test_a_campaign_is_started_and_waited_for(client: Client) -> None:
    space = {"host": "MoS2", "supercell": "4x4", "defect_types": "v_S,Se_S", "min_defects": 3, "max_defects": 3}
    assert client.plan_campaign(space, name="by the client", start=True)["state"] == "running"
    assert client.wait_for_campaign("by the client")["candidates_done"] > 100
    assert "by the client" in client.campaigns().campaign.tolist()
    with pytest.raises(InputError, match="finished"):
        client.change_campaign("by the client", "cancel")


def test_a_ranking_is_kept_compared_and_exported(client: Client, tmp_path: Path) -> None:
    client.keep_ranking(QUERY | {"limit": 3}, name="of the client")
    assert client.ranking("of the client")["rank"].tolist() == [1, 2, 3]
    assert set(client.compare_rankings("first", "of the client").what) == {"went"}
    path = client.export_ranking("of the client", tmp_path / "ranking.parquet")
    assert len(pd.read_parquet(path)) == 3


def test_a_round_goes_out_and_its_results_come_back(client: Client, tmp_path: Path) -> None:
    proposed = client.propose(QUERY, n=2)
    assert len(proposed) == 2
    assert client.round_inputs(proposed.attrs["round"], tmp_path / "inputs.zip", only_structures=True).stat().st_size
    path = tmp_path / "done.extxyz"
    write_structure(path, mos2(), random_configurations(mos2(), 1, seed=8, max_defects=4)[0])
    lines = path.read_text().splitlines()
    lines[1] += " energy=-340.0"
    path.write_text("\n".join([*lines, ""]))
    assert client.send_results(path, level=LEVEL)["report"]["read"] == 1
    predicted = client.predict(path)
    assert predicted.model.tolist() == ["small"]


def test_what_the_server_refuses_is_an_error_of_our_tree(client: Client, address: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no ranking is called 'none'"):
        client.ranking("none")
    with pytest.raises(InputError, match="low must be below high"):
        client.run_design({"host": "MoS2", "windows": ["homo_lumo_gap_min=2:1"]})
    (tmp_path / "notes.txt").write_text("all is well")
    with pytest.raises(InputError, match="no known kind"):
        client.send_results(tmp_path / "notes.txt")
    with Client(address, "scr_guessed") as guessing, pytest.raises(ScreeningError, match="revoked or expired"):
        guessing.hosts()
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(ServiceError, match="no server answers"):
        nobody.hosts()
