"""How the bundled models were made: in the repository, not in the installed package."""
