"""The error tree.

::

    ScreeningError
    ├── InputError                  the user can mend it
    │   ├── UnknownNameError        a host, model, level of theory ... that is not there
    │   ├── StructureError          a structure that is no defective supercell of the host
    │   │   ├── LatticeError        its lattice is not that of the supercell
    │   │   ├── ExtraAtomError      an interstitial or adatom
    │   │   └── TooManyDefectsError
    │   ├── FileFormatError         a file that cannot be read as what it should be
    │   ├── UnsafeArchiveError      an archive with a path, link or size that is not allowed
    │   ├── LevelOfTheoryError      energies of different levels of theory would be mixed
    │   └── NothingLeftError        every candidate that could be proposed has a calculation
    ├── CalculationError            a calculation that failed, with its reason
    ├── CountMismatchError          the number of candidates differs from Burnside's count
    ├── ServiceError                PostgreSQL, Redis or a worker is not there or did not start
    │   ├── AddressError            an address of PostgreSQL or Redis that cannot be used
    │   └── SchemaError             the database is not at the newest migration
    └── LeaseLostError              another worker has taken over the unit of work

A message says what was found, what was expected and what to do. A bug in this package is an
assertion, never one of these.
"""


class ScreeningError(Exception):
    """An error that the platform raises on purpose."""


class InputError(ScreeningError):
    """The input is not acceptable; the message says how to mend it."""


class UnknownNameError(InputError):
    """A name that the database or the catalogue does not hold."""


class StructureError(InputError):
    """A structure that is not a defective supercell of the host."""


class LatticeError(StructureError):
    """The lattice of a structure is not the lattice of the supercell."""


class ExtraAtomError(StructureError):
    """A structure holds an atom that sits on no lattice site: an interstitial or an adatom."""


class TooManyDefectsError(StructureError):
    """So many sites differ from the host that the structure is hardly this host."""


class FileFormatError(InputError):
    """A file cannot be read as the format it should have."""


class UnsafeArchiveError(InputError):
    """An archive holds a path, a link or a size that is not allowed."""


class LevelOfTheoryError(InputError):
    """Energies of different levels of theory would be mixed."""


class NothingLeftError(InputError):
    """Every candidate of a design query that could be proposed has a calculation."""


class CalculationError(ScreeningError):
    """A calculation failed; the message is the reason that is recorded."""


class CountMismatchError(ScreeningError):
    """The number of enumerated candidates differs from the exact count."""


class ServiceError(ScreeningError):
    """A service (PostgreSQL, Redis, a worker) is absent or did not start."""


class AddressError(ServiceError):
    """An address of PostgreSQL or Redis cannot be used as it is written."""


class SchemaError(ServiceError):
    """The database schema is not at the newest migration."""


class LeaseLostError(ScreeningError):
    """The lease of a unit of work has passed to another worker."""
