"""What strangers' files and requests do to this package: damaged inputs by the thousand, in processes that may die.

    python -m tests.fuzz --minutes 20                            everything, about equally long
    python -m tests.fuzz --target media --seed 123 --only 17     one trial again, with all that it says

A trial is made of the seed, its target's name and its number alone. `target.py` says what a target is, `worker.py` is
the process in which trials run, `harness.py` the one that watches it, `damage.py` what is done to bytes, texts and
trees; the other files are the targets. ``tests/fuzz/test_fuzz.py`` runs a few trials of each in the suite.
"""
