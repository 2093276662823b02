"""The pages in a real browser: the whole story, by keyboard only, without scripts, and what axe-core says of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from sqlalchemy import Engine

from screening.database import queries, tables
from screening.database.session import session_scope
from screening.database.tokens import add_token
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.dft.structures import write_structure
from screening.pipeline.hosts import add_configurations, add_supercell
from tests.synthetic_results import LEVEL, mos2, values
from tests.web.browser import ROOT, SCREENSHOTS, chromium, serving, working
from tests.web.made_project import Made

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
PRISTINE = -350.0  # eV
PATIENCE_MS = 60_000
PAGES = [
    "/", "/hosts", "/hosts/MoS2", "/screening/new?defect_types=v_S,Se_S&max_defects=2", "/campaigns",
    "/campaigns/pairs", "/explore?host=MoS2&low1=0.5&high1=1.5&confidence=0&limit=5", "/candidates/pairs/10000003",
    "/rankings", "/rankings/first?since=first", "/models", "/models/small", "/rounds", "/docs",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(made_app: FastAPI, made: tuple[Engine, Made]) -> Iterator[str]:
    """Address of a server on the made project, with workers, and references for the formation energies of results."""
    with session_scope(made[0]) as session:
        stored = add_supercell(session, mos2())
        level_id = queries.level_id_of(session, LEVEL)
        queries.add_chemical_potentials(session, level_id, dict.fromkeys(("Mo", "S", "Se", "W"), (0.0, "a test")))
        (pristine,) = add_configurations(session, stored, [Configuration((), ())])
        calculation = tables.Calculation(configuration_id=pristine, level_id=level_id, state="finished")
        session.add(calculation)
        session.flush()
        session.add(
            tables.CalculationResult(
                calculation_id=calculation.id, dataset="formula/MoS2", row_name="pristine", energy=PRISTINE
            )
        )
    with serving(made_app) as address, working(made[0]):
        yield address


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    """The browser."""
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--use-gl=swiftshader"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def token(made: tuple[Engine, Made]) -> str:
    with session_scope(made[0]) as session:
        return add_token(session, "ben", "admin")


def log_in(page: Page, site: str, token: str) -> None:
    page.goto(f"{site}/login")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")


@pytest.fixture
def context(opened: Browser) -> Iterator[BrowserContext]:
    """A window of its own with a laptop's size."""
    found = opened.new_context(viewport={"width": 1280, "height": 900})
    found.set_default_timeout(PATIENCE_MS)
    yield found
    found.close()


@pytest.fixture
def page(context: BrowserContext, site: str, token: str) -> Iterator[Page]:
    """A page of somebody who has logged in; at the end its console has no error."""
    found = context.new_page()
    faults: list[str] = []
    found.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: faults.append(str(error)))
    log_in(found, site, token)
    yield found
    assert faults == []


def keep(page: Page, name: str) -> None:
    """A screenshot for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def result_files(folder: Path) -> list[Path]:
    """Results of the formula for configurations of four defects, two of them equivalent, and a file that holds none."""
    supercell = mos2()
    types = parse_defect_types("v_S,Se_S")
    sites = [int(site) for site in supercell.allowed(types[0])]
    frames = []
    for n in range(4):
        chosen = sorted(sites[n : n + 8 : 2])
        configuration = Configuration(tuple(chosen), tuple(types[(n + i) % 2].code for i in range(4)))
        found = values(supercell, configuration)
        path = folder / "frame.extxyz"
        write_structure(path, supercell, configuration)
        lines = path.read_text().splitlines()
        lines[1] += f" energy={PRISTINE + found['formation_energy']} homo_lumo_gap_min={found['homo_lumo_gap_min']}"
        frames += lines
    good, bad = folder / "done.extxyz", folder / "notes.csv"
    good.write_text("\n".join([*frames, ""]))
    bad.write_text("what,how much\nsulphur,a little\n")
    return [good, bad]


def test_the_story_from_a_host_to_a_ranking_to_results_to_a_new_model(page: Page, site: str, tmp_path: Path) -> None:
    page.get_by_role("link", name="Hosts", exact=True).click()
    page.get_by_role("link", name="MoS2").click()
    expect(page.get_by_role("img", name="MoS2 4x4 from the top, no defects")).to_be_visible()
    keep(page, "host")
    page.get_by_role("link", name="New screening").click()
    page.get_by_label("Defect types").fill("v_S,Se_S")
    page.get_by_label("Defects, at least").fill("3")
    page.get_by_label("Name of the campaign").fill("story")
    expect(page.locator("#estimate .figure-number")).to_have_text(re.compile(r"\d"))
    keep(page, "new-screening")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#state")).to_have_text("finished", timeout=PATIENCE_MS)
    keep(page, "campaign")

    page.get_by_role("link", name="Explore").last.click()
    page.get_by_label("from", exact=True).first.fill("0.0")
    page.get_by_label("Least probability that all hold").fill("0")
    page.get_by_role("button", name="Search").click()
    expect(page).to_have_url(re.compile("low1=0.0.*confidence=0"))
    expect(page.locator("#plot .main-svg").first).to_be_visible()
    expect(page.locator("#plot-note")).to_contain_text("rows of the query")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(20)
    keep(page, "explore")
    for n in range(2):
        rows.nth(n).get_by_role("checkbox").check()
    page.get_by_label("Name of a ranking").fill("of the story")
    page.get_by_role("button", name="Keep as a ranking").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Ranking of the story")
    keep(page, "ranking")

    page.goto(f"{site}/explore?host=MoS2&supercell=4x4&campaign=story&limit=3")
    page.locator("tbody a").first.click()
    expect(page.get_by_text("Nearest calculated relatives")).to_be_visible()
    expect(page.locator(".viewer canvas").first).to_be_visible()
    keep(page, "candidate")
    page.go_back()
    page.get_by_role("button", name="Propose calculations").click()
    expect(page.get_by_role("heading", name="5 calculations")).to_be_visible()
    page.get_by_label("structures and the manifest only").check()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download inputs").click()
    assert download.value.suggested_filename.endswith(".zip")

    page.get_by_role("link", name="Rounds", exact=True).first.click()
    page.get_by_label("Files").set_input_files(result_files(tmp_path))
    page.get_by_label("Level of theory").fill(LEVEL)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("3 accepted, 1 known already, 0 refused")).to_be_visible()
    expect(page.get_by_text("notes.csv has the columns how much, what")).to_be_visible()
    keep(page, "results")

    page.get_by_role("link", name="Models").click()
    page.get_by_role("link", name="small", exact=True).click()
    expect(page.locator("#parity .main-svg").first).to_be_visible()
    keep(page, "model")
    page.get_by_role("button", name="Retrain on what is new").click()
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_contain_text("small@2")
    for _ in range(60):
        if re.search("production|rejected", heading.inner_text()):
            break
        page.wait_for_timeout(1000)
        page.reload()
    expect(heading).to_have_text(re.compile("production|rejected"))
    keep(page, "new-version")


def test_a_search_is_made_and_kept_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    tab_to(page, page.get_by_role("link", name="Explore", exact=True))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Explore")
    tab_to(page, page.get_by_label("Host", exact=True))
    page.keyboard.type("MoS2")
    page.keyboard.press("Enter")
    box = page.locator("tbody input[type=checkbox]").first
    expect(box).to_be_visible()
    tab_to(page, box)
    page.keyboard.press("Space")
    tab_to(page, page.get_by_label("Name of a ranking"))
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Ranking by keyboard")
    expect(page.get_by_role("heading", name="1 rows")).to_be_visible()


def tab_to(page: Page, target: Any) -> None:
    """Press Tab until an element has the focus, which must be seen."""
    for _ in range(120):
        if target.evaluate("element => element === document.activeElement"):
            outline = target.evaluate("element => getComputedStyle(element).outlineStyle")
            assert outline != "none", "the focus cannot be seen"
            return
        page.keyboard.press("Tab")
    raise AssertionError("the element cannot be reached by Tab")


def test_pages_work_without_scripts(opened: Browser, site: str, token: str) -> None:
    context = opened.new_context(java_script_enabled=False)
    page = context.new_page()
    log_in(page, site, token)
    page.goto(f"{site}/screening/new")
    page.get_by_label("Defect types").fill("v_S,Se_S")
    page.get_by_role("button", name="Count").click()
    expect(page.locator("#estimate .figure-number")).to_have_text("3\u202f891")
    page.goto(f"{site}/explore")
    page.get_by_label("Host", exact=True).fill("MoS2")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("tbody tr").first).to_be_visible()
    page.locator("tbody a").first.click()
    page.get_by_role("link", name="The model, the results").click()
    expect(page.get_by_text("Nearest calculated relatives")).to_be_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_axe_finds_no_serious_fault_and_no_page_is_wider_than_its_window(
    opened: Browser, site: str, token: str, scheme: Any, width: int
) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed; `make scripts` fetches it where npm is")
    context = opened.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    log_in(page, site, token)
    faults = []
    for path in PAGES:
        page.goto(site + path, wait_until="networkidle" if "explore" in path or "models/" in path else "load")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        keep(page, f"{width}-{scheme}{re.sub('[^a-z0-9]+', '-', path.split('?')[0])}")
        if path == "/docs":
            continue  # Swagger UI's own page
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        faults += [
            f"{path}: {fault['id']} ({fault['impact']}) at {fault['nodes'][0]['target']}: {fault['help']}"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
    context.close()
    assert faults == []
