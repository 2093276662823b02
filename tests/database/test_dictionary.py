from pathlib import Path

from sqlalchemy.orm import Session

from screening.database.dictionary import describe, describe_functions, to_markdown
from screening.database.tables import PROPERTY_COMMENTS, Table

PAGE = Path(__file__).parents[2] / "docs" / "data-dictionary.md"


def test_the_page_in_docs_is_that_of_the_database(session: Session) -> None:
    """Made anew by `screening sql --dictionary > docs/data-dictionary.md`."""
    assert PAGE.read_text() == to_markdown(describe(session), describe_functions(session))


def test_every_table_is_described_with_its_columns(session: Session) -> None:
    tables = {relation.name: relation for relation in describe(session) if not relation.is_view}
    assert set(tables) == set(Table.metadata.tables)
    for name, table in Table.metadata.tables.items():
        assert {column.name for column in tables[name].columns} == {column.name for column in table.columns}


def test_predictions_have_their_units(session: Session) -> None:
    view = next(relation for relation in describe(session) if relation.name == "candidate_predictions")
    comments = {column.name: column.comment for column in view.columns}
    for name, comment in PROPERTY_COMMENTS.items():
        assert comments[name] == f"predicted {comment}"
        assert comments[f"{name}_std"] == f"standard deviation of the predicted {comment}"


def test_the_function_of_readers_is_described(session: Session) -> None:
    (function,) = describe_functions(session)
    assert (function.signature, function.result) == ("campaign(name text)", "integer")
