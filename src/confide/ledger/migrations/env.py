"""What Alembic runs: the migrations use the connection, and so the transaction, of the ledger that calls them."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
