"""The read-only pages of a ledger: what they show, how they look, and who may ask for them."""
