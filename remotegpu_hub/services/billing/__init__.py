"""The service `billing`: reads of the ledger; owns meter."""
