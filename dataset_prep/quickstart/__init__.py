"""``python -m dataset_prep.quickstart``: the embedded world, both stages of training, and the report on them."""
