"""Groups packed without padding: the layout of the stream, its attention, and the cache of decoding.

Enter at `pack.py` (Part, Pack) and `layout.py` (the attention function that transformers calls). `tiles.py` and
`flex.py` are two ways to compute the attention. Other rooms use Part, Pack, micro_batches and DecodeCache.
"""
