"""The properties of a structure that OPTIMADE clients can ask for and filter by, and the SQL column of each.

What belongs to a supercell with a composition (elements, formulas, numbers of sites) is a column of `kinds`, the rest
a column of `entries` (screening.web.optimade.structures). Our own properties carry a prefix, a unit and a description.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from screening.database.tables import PROPERTY_COMMENTS

PREFIX = "_screening_"

Kind = Literal["string", "integer", "float", "boolean", "timestamp", "strings", "integers", "floats", "whole"]
_TYPES: dict[Kind, str] = {
    "string": "string", "integer": "integer", "float": "float", "boolean": "boolean", "timestamp": "timestamp",
    "strings": "list", "integers": "list", "floats": "list", "whole": "list",
}  # fmt: skip


@dataclass(frozen=True)
class Property:
    """A property of a structure.

    Attributes:
        kind: of its values; what is `whole` is a list of lists or dictionaries, which can be known or not, and long.
        column: of the relation that is filtered; None where every structure has it.
        length: column of its number of entries, of a list.
    """

    name: str
    kind: Kind
    description: str
    unit: str | None = None
    column: str | None = None
    length: str | None = None

    @property
    def type(self) -> str:
        """Data type of OPTIMADE."""
        return _TYPES[self.kind]


def _unit(name: str) -> str:
    return "mu_B" if name == "total_mag" else "eV"


_STANDARD = (
    Property("id", "string", "identifier of the structure here", column="id"),
    Property("type", "string", "always structures", column="type"),
    Property("immutable_id", "string", "not kept", column="immutable_id"),
    Property("last_modified", "timestamp", "when its values were stored", column="last_modified"),
    Property("elements", "strings", "chemical symbols, in alphabetical order", column="elements", length="nelements"),
    Property("nelements", "integer", "number of elements", column="nelements"),
    Property(
        "elements_ratios", "floats", "shares of the elements, in their order", column="elements_ratios",
        length="nelements",
    ),
    Property("chemical_formula_descriptive", "string", "host and defects in words", column="descriptive"),
    Property("chemical_formula_reduced", "string", "reduced formula of the atoms", column="reduced"),
    Property("chemical_formula_hill", "string", "formula in Hill's order", column="hill"),
    Property("chemical_formula_anonymous", "string", "reduced formula without elements", column="anonymous"),
    Property("dimension_types", "integers", "1 along periodic lattice vectors", column="dimension_types",
             length="n_dimensions"),
    Property("nperiodic_dimensions", "integer", "2 for a layer, 3 for a crystal", column="nperiodic_dimensions"),
    Property("lattice_vectors", "whole", "vectors of the supercell", unit="angstrom", length="n_dimensions"),
    Property("cartesian_site_positions", "whole", "ideal positions, also of vacant sites", unit="angstrom",
             length="nsites"),
    Property("nsites", "integer", "number of sites, vacant ones among them", column="nsites"),
    Property("species", "whole", "what may sit on a site; a vacancy is one of them", length="n_species"),
    Property("species_at_sites", "strings", "name of the species of each site", column="species_names",
             length="nsites"),
    Property("structure_features", "strings", "none: nothing is disordered", column="structure_features",
             length="n_features"),
)  # fmt: skip
_OURS = (
    Property("host", "string", "pristine material", column="host"),
    Property("supercell", "string", "repeats of the unit cell", column="supercell"),
    Property("configuration", "string", "defect types with their numbers: 2*v_S+W_Mo", column="configuration"),
    Property("defect_types", "strings", "defect types that occur", column="types", length="n_types"),
    Property("n_defects", "integer", "number of defects", column="n_defects"),
    Property("is_calculated", "boolean", "whether the values are calculated, not predicted", column="is_calculated"),
    Property("level_of_theory", "string", "of the values", column="level"),
    Property("model", "string", "trained model of predicted values; unknown of calculated ones", column="model"),
    Property("ranking", "string", "saved ranking that a predicted structure is from", column="ranking"),
    Property("probability", "float", "that the windows of its ranking hold", unit="1", column="probability"),
    *(
        Property(name, "float", f"{comment.rsplit(',', 1)[0]}, calculated or predicted", unit=_unit(name), column=name)
        for name, comment in PROPERTY_COMMENTS.items()
    ),
    *(
        Property(
            f"{name}_std", "float", f"standard deviation of {comment.rsplit(',', 1)[0]}, of predicted values",
            unit=_unit(name), column=f"{name}_std",
        )
        for name, comment in PROPERTY_COMMENTS.items()
    ),
)  # fmt: skip
PROPERTIES: dict[str, Property] = {
    **{found.name: found for found in _STANDARD},
    **{
        PREFIX + found.name: Property(
            PREFIX + found.name, found.kind, found.description, found.unit, found.column, found.length
        )
        for found in _OURS
    },
}
OWN_COLUMNS = tuple((PREFIX + found.name, found.column) for found in _OURS)
