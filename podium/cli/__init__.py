"""The command line: operators' commands call the HTTP API and print tables, JSON or ids."""
