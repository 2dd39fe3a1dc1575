"""The embedded world: small real media, a small LLM that knows the world from text only, small encoders.

``python -m dataset_prep.world --out DIR --seed S`` writes everything that the quickstart trains on. Audio and
pictures (or videos) are never paired before the joint test, so whatever is answered there about both of them
was put together by the language model alone.
"""
