"""Versions of Python, torch and Triton side by side: `make matrix`, which writes docs/versions.md.

A wheel is built once, by the newest Python at hand, and installed into an environment for each row.
The suite runs there against the installed package: in a copy of the repository whose fused_sched/
leads to site-packages. Runs by any Python from 3.10 on, with nothing installed.
"""
