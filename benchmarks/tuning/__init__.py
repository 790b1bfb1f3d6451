"""Which knobs of the Triton launch are best on this GPU? Settles it in under four minutes.

    python -m benchmarks.tuning [--seconds S] [--elements N ...] [--out DIR]

In turn: the loads that a thread makes at a time together with the limit of registers, for each rule
and width of dtypes; the waves of programs; the order of the ticket. Each with the others as chosen
so far, by replays of a captured step, beside a copy of 4 GiB (2 read, 2 written). What is chosen is
at last measured beside what holds now and beside the native engine.

It prints what to write into `fused_sched/tables/layout.py`. Rows and choice are written after each
part, so that a run that is stopped leaves what it has. In Triton's interpreter it is only tested.
"""
