"""The relational database: tables, sessions, bulk copies, queries. No torch, no pymatgen."""
