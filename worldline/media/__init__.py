"""Files on disk to pixels and back: the only package that touches PyAV and Pillow's codecs.

Pixels are `uint8 (T, H, W, 3)` RGB on both sides. `read.py` reads anyone's video or picture,
`write.py` writes H.264, GIF, WebP and PNG atomically, `preview.py` draws contact sheets and
`provenance.py` says inside the file where it came from.
"""
