"""The revisions of the ledger's schema, oldest first by name. One that was released is never changed."""
