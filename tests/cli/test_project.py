"""Names of hosts as commands read them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy.orm import Session

from screening.cli.project import Project, find_host
from screening.database.queries import get_host
from screening.database.session import make_engine, session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.host import Supercell
from screening.errors import UnknownNameError
from screening.pipeline.hosts import add_supercell
from screening.pipeline.space_requests import stored_host_name
from screening.services import addresses
from screening.settings import Settings


@pytest.mark.parametrize(("given", "name"), [("hBN", "h-BN"), ("BN", "h-BN"), ("P", "BP"), ("MoS2", "MoS2")])
def test_other_names_of_a_host_lead_to_its_row(session: Session, given: str, name: str) -> None:
    add_supercell(session, Supercell.parse(catalogue_host(name), "3x3"))
    assert get_host(session, stored_host_name(session, given)).name == name


def test_a_name_that_nobody_knows_stays_as_it_is_for_the_message(session: Session) -> None:
    assert stored_host_name(session, "unheard-of") == "unheard-of"
    with pytest.raises(UnknownNameError, match="unheard-of"):
        get_host(session, stored_host_name(session, "unheard-of"))


def test_a_host_of_exactly_this_name_comes_before_the_other_names(clean_services: Settings) -> None:
    engine = make_engine(addresses(clean_services).database_url)
    with session_scope(engine) as session:
        other = replace(catalogue_host("MoS2"), name="hBN")
        add_supercell(session, Supercell.parse(other, "3x3"))
    engine.dispose()
    project = Project(clean_services)
    assert find_host(project, "hBN").formula == "MoS2"
    assert find_host(project, "BN").formula == "BN"
    project.engine.dispose()
