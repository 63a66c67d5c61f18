"""What the command line shows: JSON of the control port in, tables for people out. Eighty columns, colour optional."""
