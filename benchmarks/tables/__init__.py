"""The tables: for each question its rows, its full table, its part of the README and its plot."""
