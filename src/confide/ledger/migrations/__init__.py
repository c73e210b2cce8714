"""Changes of the ledger's tables from version to version, up and down, run by Alembic (`confide ledger migrate`)."""
